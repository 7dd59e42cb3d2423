"""What memories hold and how two differ, matrix by matrix: norms, singular values, effective ranks."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.sparse import to_dense


@dataclass(frozen=True)
class HeadRow:
    """What one matrix of one layer's memory holds.

    Attributes:
        layer: index in the model.
        row: of the batch.
        head: key/value head.
        part: of a head that has several matrices (bank, fine memory, basis vector); None where it has one.
        norm: Frobenius norm of M.
        effective_rank: exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007); 0 for
            an empty memory.
        singular_values: the largest ones, descending.
        z_norm: Euclidean norm of z; None without z.
        tokens: tokens this row has read.
        written: sum of the head's write strengths, before they fell; None without `memory.write_budget`.
    """

    layer: int
    row: int
    head: int
    part: int | None
    norm: float
    effective_rank: float
    singular_values: tuple[float, ...]
    z_norm: float | None
    tokens: int
    written: float | None


@dataclass(frozen=True)
class DifferenceRow:
    """How one matrix differs between two memories.

    Attributes:
        layer: index in the model.
        row: of the batch.
        head: key/value head.
        part: of a head that has several matrices (bank, fine memory, basis vector); None where it has one.
        norm: Frobenius norm of the first M.
        other_norm: of the second.
        difference: of first minus second.
        cosine: between the two as vectors; 0 where one is empty.
    """

    layer: int
    row: int
    head: int
    part: int | None
    norm: float
    other_norm: float
    difference: float
    cosine: float


def matrices(state: LayerState) -> Tensor | None:
    """Return a state's M with one dimension for parts, `[rows, heads, parts, key, value]`; None where it has no M."""
    if "M" not in state:
        return None
    matrix = to_dense(state)["M"].detach().double()
    return matrix.unsqueeze(2) if matrix.dim() == _SINGLE else matrix


def head_rows(layers: Mapping[int, LayerState], singular_values: int) -> list[HeadRow]:
    """Return a row for every matrix, parts that hold nothing left out, with its so many largest singular values."""
    rows = []
    for index, state in sorted(layers.items()):
        matrix = matrices(state)
        if matrix is None:
            continue
        values = torch.linalg.svdvals(matrix)
        shares = values / values.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
        ranks = torch.special.entr(shares).sum(dim=-1).exp() * (values[..., 0] > 0)
        z_norms = to_dense(state)["z"].detach().double().norm(dim=-1).view(matrix.shape[:3]) if "z" in state else None
        counts = state["count"].expand(values.shape[0])
        written = state["written"].expand(values.shape[0], -1) if "written" in state else None
        for place in _places(values[..., 0] > 0):
            row, head, part = place
            rows.append(
                HeadRow(
                    layer=index,
                    row=row,
                    head=head,
                    part=None if matrix.shape[2] == 1 else part,
                    norm=float(values[place].norm()),
                    effective_rank=float(ranks[place]),
                    singular_values=tuple(values[place][:singular_values].tolist()),
                    z_norm=None if z_norms is None else float(z_norms[place]),
                    tokens=int(counts[row]),
                    written=None if written is None else float(written[row, head]),
                )
            )
    return rows


def differences(mine: Mapping[int, LayerState], theirs: Mapping[int, LayerState]) -> list[DifferenceRow]:
    """Compare M matrix by matrix; what only one of them has counts as empty in the other.

    Raises:
        SenriError: matrices of different sizes, such as different numbers of rows.
    """
    rows = []
    for index in sorted({*mine, *theirs}):
        one, other = (matrices(layers.get(index, {})) for layers in (mine, theirs))
        one = torch.zeros_like(other) if one is None and other is not None else one
        other = torch.zeros_like(one) if other is None and one is not None else other
        if one is None or other is None:
            continue
        if one.shape != other.shape:
            raise SenriError(
                f"the memories have M of {tuple(one.shape)} and {tuple(other.shape)} in layer {index}: "
                "compare memories with the same number of rows."
            )
        one, other = one.flatten(3), other.flatten(3)
        norms = (
            one.norm(dim=-1),
            other.norm(dim=-1),
            (one - other).norm(dim=-1),
            torch.cosine_similarity(one, other, -1),
        )
        for place in _places((norms[0] > 0) | (norms[1] > 0)):
            row, head, part = place
            named = None if one.shape[2] == 1 else part
            rows.append(DifferenceRow(index, row, head, named, *(float(norm[place]) for norm in norms)))
    return rows


def _places(holds: Tensor) -> list[tuple[int, int, int]]:
    """Name row, head and part of every matrix to show: all single ones, and of several parts those that hold something.

    Args:
        holds: bool `[rows, heads, parts]`.
    """
    shown = torch.ones_like(holds) if holds.shape[2] == 1 else holds
    return [(row, head, part) for row, head, part in shown.nonzero().tolist()]


_SINGLE = 4
"""Dimensions of M without parts: rows, heads, key, value."""
