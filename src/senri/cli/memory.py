"""`senri memory inspect | clean | merge | diff | size`: what session and memory files hold."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senri.errors import SenriError

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table


def inspect(session: Path, *, out: Path | None = None) -> None:
    """Show norms, effective ranks and singular values, layer by layer and head by head.

    Args:
        session: a session or memory file.
        out: folder for memory.json and the singular values as memory.png.
    """
    from senri.memory import MemoryState

    state = MemoryState.load(session)
    rows = state.inspect()
    header = state.header
    print(f"{session}: {header.tokens_read:,} tokens read by {header.base or 'a model'}, rule {header.rule}.")
    table = _table("layer", "head", "norm", "effective\nrank", "largest singular values")
    for row in rows:
        largest = "  ".join(map(_short, row.singular_values))
        table.add_row(str(row.layer), _head(row), _short(row.norm), f"{row.effective_rank:.1f}", largest)
    _show(table)
    if out is not None:
        spectra = {f"layer {index}": _spectrum(tensors["M"]) for index, tensors in state.layers.items()}
        _write(out, "memory", spectra, {"header": asdict(header), "heads": [asdict(row) for row in rows]})


def diff(first: Path, second: Path, *, out: Path | None = None) -> None:
    """Compare two memories of one model, layer by layer and head by head.

    Args:
        first: a session or memory file.
        second: another one.
        out: folder for diff.json and the singular values of the difference as diff.png.
    """
    from senri.memory import MemoryState

    one, other = MemoryState.load(first), MemoryState.load(second)
    rows = one.diff(other)
    table = _table("layer", "head", f"norm of {first.name}", f"norm of {second.name}", "norm of difference", "cosine")
    for row in rows:
        norms = map(_short, (row.norm, row.other_norm, row.difference))
        table.add_row(str(row.layer), _head(row), *norms, f"{row.cosine:.4f}")
    _show(table)
    if out is not None:
        spectra = {
            f"layer {index}": _spectrum(tensors["M"] - other.layers[index]["M"])
            for index, tensors in one.layers.items()
            if index in other.layers
        }
        _write(out, "diff", spectra, {"heads": [asdict(row) for row in rows]})


def clean(session: Path, *, out: Path | None = None, energy: float = 0.95, max_rank: int | None = None) -> None:
    """Keep the strongest singular directions of every memory matrix and drop the rest.

    Args:
        session: a session or memory file.
        out: file to write; the session itself if not given.
        energy: share of the squared singular values to keep, above 0 and at most 1.
        max_rank: keep no more directions than this.
    """
    from senri.memory import clean_matrix
    from senri.memory.file import read_file, write_file
    from senri.memory.state import split_tensors

    tensors, header = read_file(session)
    table = _table("layer", "rank before", "rank after", "energy kept")
    for index in sorted(split_tensors(tensors)[0]):
        name = f"layers.{index}.memory.M"
        tensors[name], stats = clean_matrix(tensors[name], energy, max_rank)
        kept = f"{stats.energy_retained:.2%}"
        table.add_row(str(index), str(stats.original_rank), str(stats.retained_rank), kept)
    target = out or session
    write_file(target, tensors, header)
    _show(table)
    print(f"written to {target}.")


def merge(*sessions: Path, out: Path) -> None:
    """Add memories of one model into one that knows all their texts (linear rule).

    Args:
        sessions: two or more session or memory files.
        out: memory file to write.
    """
    from senri.memory import MemoryState

    if len(sessions) < 2:
        raise SenriError(f"merge needs two or more files, but got {len(sessions)}: name them before --out.")
    merged = MemoryState.merge([MemoryState.load(path) for path in sessions])
    merged.save(out)
    print(f"{len(sessions)} memories with {merged.header.tokens_read:,} tokens in all, written to {out}.")


def size(session: Path) -> None:
    """Show what a file's bytes are made of.

    Args:
        session: a session or memory file.
    """
    from senri.evaluation.figures import human_bytes
    from senri.memory.file import read_file
    from senri.memory.state import split_tensors

    tensors, header = read_file(session)
    parts = dict(zip(("memory states", "windows"), split_tensors(tensors), strict=True))
    counts = {
        name: sum(tensor.nbytes for tensors in layers.values() for tensor in tensors.values())
        for name, layers in parts.items()
    }
    whole = session.stat().st_size
    counts |= {"header": whole - sum(counts.values()), "file": whole}
    table = _table("part", "bytes", "")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", human_bytes(count))
    _show(table)
    print(f"{header.tokens_read:,} tokens read; reading more does not make it larger once the windows are full.")


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if not index else "right")
    return table


def _show(table: "Table") -> None:
    from rich.console import Console

    Console().print(table)


def _head(row: Any) -> str:
    return str(row.head) if row.row == 0 else f"{row.head} of row {row.row}"


def _short(value: float) -> str:
    """Return three digits, and an exponent without the zeros that would not fit a terminal of 80 columns."""
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].strip("+"), f"{value:.3g}")


def _spectrum(matrix: Any) -> "np.ndarray[Any, Any]":
    """Return the singular values of `[batch, heads, key, value]` as `[batch * heads, rank]`."""
    import torch

    values: np.ndarray[Any, Any] = torch.linalg.svdvals(matrix.double()).flatten(0, 1).numpy()
    return values


def _write(out: Path, name: str, spectra: "dict[str, np.ndarray[Any, Any]]", results: dict[str, Any]) -> None:
    from senri.evaluation.figures import png_bytes, spectrum_figure
    from senri.evaluation.files import make_folder, write_bytes
    from senri.evaluation.report import write_json

    make_folder(out)
    write_bytes(out / f"{name}.png", png_bytes(spectrum_figure(spectra)))
    write_json(out / f"{name}.json", results)
    print(f"written to {out / name}.png and .json.")
