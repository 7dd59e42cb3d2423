"""`senri export`: a model folder for people who do not have this package."""

from pathlib import Path

from senri.cli.opening import model_type_of
from senri.errors import SenriError


def export(*, model: Path, out: Path, remote_code: bool = False) -> None:
    """Write a copy of a model that loads without this package.

    Args:
        model: folder of a converted model.
        out: folder to write.
        remote_code: put Senri's code into the folder, for from_pretrained(..., trust_remote_code=True).
    """
    if not remote_code:
        raise SenriError("export knows one form: give --remote-code to put Senri's code into the folder.")
    if model_type_of(model) != "senri":
        raise SenriError(f"{model} is not a Senri model: run senri convert on it first.")
    from senri.conversion.export import export_remote_code

    export_remote_code(model, out)
    print(f"written to {out}: open it with from_pretrained({str(out)!r}, trust_remote_code=True).")
