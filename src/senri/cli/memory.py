"""`senri memory inspect | clean | merge | diff`: what session and memory files hold."""

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
    from senri.memory.inspection import matrices

    state = MemoryState.load(session)
    rows = state.inspect()
    header = state.header
    print(f"{session}: {header.tokens_read:,} tokens read by {header.base or 'a model'}, rule {header.rule}.")
    counted = ["written"] if any(row.written is not None for row in rows) else []
    table = table_of("layer", "head", "norm", *counted, "effective\nrank", "largest singular values")
    for row in rows:
        # a longer name of the head leaves room for fewer numbers in a terminal of 80 columns
        largest = "  ".join(map(_short, row.singular_values if row.part is None else row.singular_values[:4]))
        sums = ["" if row.written is None else f"{row.written:.0f}"][: len(counted)]
        table.add_row(str(row.layer), _head(row), _short(row.norm), *sums, f"{row.effective_rank:.1f}", largest)
    show(table)
    if out is not None:
        found = {index: matrices(tensors) for index, tensors in state.layers.items()}
        spectra = {f"layer {index}": _spectrum(matrix) for index, matrix in found.items() if matrix is not None}
        _write(out, "memory", spectra, {"header": asdict(header), "heads": [asdict(row) for row in rows]})


def diff(first: Path, second: Path, *, out: Path | None = None) -> None:
    """Compare two memories of one model, layer by layer and head by head.

    Args:
        first: a session or memory file.
        second: another one.
        out: folder for diff.json and the singular values of the difference as diff.png.
    """
    from senri.memory import MemoryState
    from senri.memory.inspection import matrices

    one, other = MemoryState.load(first), MemoryState.load(second)
    rows = one.diff(other)
    table = table_of("layer", "head", f"norm of {first.name}", f"norm of {second.name}", "norm of difference", "cosine")
    for row in rows:
        norms = map(_short, (row.norm, row.other_norm, row.difference))
        table.add_row(str(row.layer), _head(row), *norms, f"{row.cosine:.4f}")
    show(table)
    if out is not None:
        pairs = {index: (matrices(one.layers[index]), matrices(other.layers.get(index, {}))) for index in one.layers}
        spectra = {
            f"layer {index}": _spectrum(mine - theirs)
            for index, (mine, theirs) in pairs.items()
            if mine is not None and theirs is not None
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
    table = table_of("layer", "rank before", "rank after", "energy kept")
    for index in sorted(split_tensors(tensors)[0]):
        name = f"layers.{index}.memory.M"
        tensors[name], stats = clean_matrix(tensors[name], energy, max_rank)
        kept = f"{stats.energy_retained:.2%}"
        table.add_row(str(index), str(stats.original_rank), str(stats.retained_rank), kept)
    target = out or session
    write_file(target, tensors, header)
    show(table)
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


def table_of(*columns: str) -> "Table":
    """Return an empty table, its first column to the left and the others to the right."""
    from rich.table import Table

    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if not index else "right")
    return table


def show(table: "Table") -> None:
    """Print a table."""
    from rich.console import Console

    Console().print(table)


def _head(row: Any) -> str:
    part = "" if row.part is None else f", part {row.part}"
    return f"{row.head}{part}" if row.row == 0 else f"{row.head}{part} of row {row.row}"


def _short(value: float) -> str:
    """Return three digits, and an exponent without the zeros that would not fit a terminal of 80 columns."""
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].strip("+"), f"{value:.3g}")


def _spectrum(matrix: Any) -> "np.ndarray[Any, Any]":
    """Return the singular values of `[rows, heads, parts, key, value]` as `[matrices that hold something, rank]`."""
    import torch

    flat = matrix.flatten(0, 2)
    holds = flat.flatten(1).any(dim=1)
    values: np.ndarray[Any, Any] = torch.linalg.svdvals(flat[holds] if bool(holds.any()) else flat[:1]).numpy()
    return values


def _write(out: Path, name: str, spectra: "dict[str, np.ndarray[Any, Any]]", results: dict[str, Any]) -> None:
    from senri.evaluation.figures import png_bytes, spectrum_figure
    from senri.evaluation.files import make_folder, write_bytes
    from senri.evaluation.report import write_json

    make_folder(out)
    write_bytes(out / f"{name}.png", png_bytes(spectrum_figure(spectra)))
    write_json(out / f"{name}.json", results)
    print(f"written to {out / name}.png and .json.")
