"""Adding up states of the linear rule."""

from collections.abc import Sequence

import torch

from senri.errors import SenriError
from senri.memory.base import LayerState

ADDITIVE = ("M", "z", "pending_M", "pending_z", "count")
"""State tensors that are sums over tokens. All others (the past of a convolution) belong to one sequence's end."""


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
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes):
        raise SenriError("the states to merge have different tensors or shapes: take states of the same memory.")
    return {
        name: torch.stack([state[name] for state in states]).sum(dim=0) if name in ADDITIVE else torch.zeros_like(first)
        for name, first in states[0].items()
    }
