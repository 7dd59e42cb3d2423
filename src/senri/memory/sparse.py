"""States of memories with many parts of which few are written: only the written ones take room.

A sparse state holds `touched` `[rows, heads, parts]`, bool. Its matrices have, in place of `[heads, parts]`, one
dimension with the touched parts of a row in order; rows with fewer are filled up with zeros.
"""

import torch
from torch import Tensor

from senri.memory.base import LayerState

BY_PART = ("M", "z", "pending_M", "pending_z")
"""State tensors that have a matrix or vector for every part."""


def is_sparse(state: LayerState) -> bool:
    """Tell whether only touched parts are stored."""
    return "touched" in state


def to_dense(state: LayerState) -> LayerState:
    """Give every part its room: tensors by part become `[rows, heads, parts, ...]`; `touched` goes."""
    if not is_sparse(state):
        return state
    touched = state["touched"]
    return {name: _scattered(x, touched) if name in BY_PART else x for name, x in state.items() if name != "touched"}


def from_dense(state: LayerState) -> LayerState:
    """Keep only the parts that hold anything. Undoes `to_dense`."""
    by_part = [state[name] for name in BY_PART if name in state]
    holds = [tensor.flatten(3).any(dim=-1) for tensor in by_part]
    shared = min(mask.shape[0] for mask in holds)
    # Where rows share a state (one row), a part that any row is about to write counts as touched for all.
    folded = [mask if mask.shape[0] == shared else mask.any(dim=0, keepdim=True) for mask in holds]
    touched = torch.stack(folded).any(dim=0)
    sparse = {name: _gathered(x, touched) if name in BY_PART else x for name, x in state.items()}
    return {**sparse, "touched": touched}


def _scattered(x: Tensor, touched: Tensor) -> Tensor:
    rows, (heads, parts) = x.shape[0], touched.shape[1:]
    flat = touched.flatten(1).expand(rows, -1)
    # the place of every part among the stored ones; parts that are not stored read a further one that is zero
    place = torch.where(flat, flat.cumsum(dim=1) - 1, x.shape[1])
    padded = torch.cat([x, x.new_zeros(rows, 1, *x.shape[2:])], dim=1)
    return torch.unflatten(_take(padded, place), 1, (heads, parts))


def _gathered(x: Tensor, touched: Tensor) -> Tensor:
    rows, stored = x.shape[0], int(touched.flatten(1).sum(dim=1).max())
    flat = touched.flatten(1).expand(rows, -1)
    order = flat.logical_not().to(torch.int8).argsort(dim=1, stable=True)[:, :stored]
    return _take(x.flatten(1, 2), order)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))
