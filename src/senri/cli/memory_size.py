"""`senri memory size`: what the bytes of a file are made of, or those of a model's memories before it has read."""

from pathlib import Path
from typing import Any

from senri.cli.memory import show, table_of
from senri.cli.opening import open_config
from senri.errors import SenriError, nearest


def size(what: str) -> None:
    """Show how many bytes a memory takes, and what they are made of.

    Args:
        what: a session or memory file, the folder of a model, or the name of a hand-built model such as infini.
    """
    path = Path(what)
    if path.is_dir():
        _size_of_model(open_config(path))
    elif path.exists():
        _size_of_file(path)
    else:
        _size_of_model(_config_of_name(what))


def _size_of_file(path: Path) -> None:
    from senri.evaluation.figures import human_bytes
    from senri.memory.file import read_file
    from senri.memory.state import split_tensors

    tensors, header = read_file(path)
    parts = dict(zip(("memory states", "windows"), split_tensors(tensors), strict=True))
    counts = {
        name: sum(tensor.nbytes for tensors in layers.values() for tensor in tensors.values())
        for name, layers in parts.items()
    }
    whole = path.stat().st_size
    counts |= {"header": whole - sum(counts.values()), "file": whole}
    table = table_of("part", "bytes", "")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", human_bytes(count))
    show(table)
    print(f"{header.tokens_read:,} tokens read; reading more does not make it larger once the windows are full.")


def _size_of_model(config: Any) -> None:
    """Print every state tensor of one sequence, with all its room taken."""
    from senri.evaluation.figures import human_bytes
    from senri.mixers.branches import build_branch

    total = at_16_bits = 0
    table = table_of("layer", "memory", "tensor", "shape", "bytes")
    for layer in sorted(config.memory_layers or []):
        branch = build_branch(config, layer)
        state = branch.train(False).allocate(branch.init_state(1))
        for name, tensor in state.items():
            kind = config.memory_config_of(layer).type
            table.add_row(str(layer), kind, name, " x ".join(map(str, tensor.shape[1:])) or "1", f"{tensor.nbytes:,}")
            total += tensor.nbytes
            at_16_bits += tensor.nbytes // 2 if tensor.is_floating_point() else tensor.nbytes
    if not total:
        print("this model has no memory: 0 bytes.")
        return
    show(table)
    print(
        f"memory of one sequence at its fullest: {total:,} bytes ({human_bytes(total)}) in float32, as it is kept; "
        f"{at_16_bits:,} if it were kept at 16 bits."
    )


def _config_of_name(name: str) -> Any:
    import torch

    from senri.models import create_model
    from senri.models.hand_built import MODELS

    if name not in MODELS:
        raise SenriError(f"{name} is no file, no folder and no hand-built model: {nearest(name, MODELS)}")
    with torch.device("meta"):
        return create_model(name).config
