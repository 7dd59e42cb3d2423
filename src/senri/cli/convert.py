"""`senri convert`: a pretrained checkpoint becomes a Senri model."""

from pathlib import Path
from typing import Literal


def convert(
    *overrides: str,
    preset: str,
    out: Path,
    base: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    calibration_text: Path | None = None,
) -> None:
    """Give a pretrained model a memory.

    Args:
        overrides: knobs of the preset such as memory.rule=delta.
        preset: a name in config/presets, or a YAML file.
        out: folder to write.
        base: a Hub id, a folder or a .gguf file; the preset's own if not given.
        dtype: of the written weights.
        calibration_text: what calibration reads; the Python language reference if not given.
    """
    from senri.cli.opening import quieten

    quieten()
    from rich.console import Console

    from senri.conversion import convert as convert_checkpoint
    from senri.conversion import load_preset

    chosen = load_preset(preset, overrides)
    print(f"converting {base or chosen.base} with the preset {preset} ...", flush=True)
    result = convert_checkpoint(base, chosen, out, calibration_text=calibration_text, dtype=dtype)
    Console().print(result.table.render())
    print(f"written to {out}.")
