"""Adding up states of the linear rule."""

from collections.abc import Sequence

import torch
from torch import Tensor

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.sparse import from_dense, is_sparse, to_dense

END_OF_SEQUENCE = ("conv_k", "conv_q", "conv_beta", "late_states", "late_values", "late_ids", "begun")
"""State tensors that belong to one sequence's end. All others are sums over tokens."""


def merge_layer_states(states: Sequence[LayerState], rule: str) -> LayerState:
    """Add states of one memory: the sum answers as one memory that was written with what all of them were.

    What belongs to the end of one sequence starts empty, as before a first token.

    Raises:
        SenriError: a rule other than `linear`, no states, or different tensors or shapes.
    """
    if rule != "linear":
        raise SenriError(f"memories with the rule {rule!r} cannot be merged: only those of the rule 'linear' add up.")
    if not states:
        raise SenriError("nothing to merge: give at least one state.")
    dense = [to_dense(state) for state in states]
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in dense]
    if any(shape != shapes[0] for shape in shapes):
        raise SenriError("the states to merge have different tensors or shapes: take states of the same memory.")
    merged = {name: _added(name, [state[name] for state in dense]) for name in dense[0]}
    return from_dense(merged) if is_sparse(states[0]) else merged


def _added(name: str, tensors: Sequence[Tensor]) -> Tensor:
    return torch.zeros_like(tensors[0]) if name in END_OF_SEQUENCE else torch.stack(list(tensors)).sum(dim=0)
