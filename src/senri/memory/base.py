"""The one interface of all memories: pure functions from a state to a new state."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.cleaning import SVDCleaningStats
from senri.memory.config import MemoryConfig

LayerState = dict[str, Tensor]
"""What one memory carries through a sequence, by name ("M", "z", ...). Dimension 0 of every tensor is the batch
(1 for what rows share where the scope is `batch`). Floating tensors are float32 whatever the model's dtype. Its size
never depends on how much was read."""


def state_bytes(state: LayerState) -> int:
    """Return the bytes of a state's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


@dataclass
class NoOptions:
    """The options of a memory that has none."""


class Memory(nn.Module, ABC):
    """The parameters and the rule that write to and read from a state. Pure: a state goes in, a new state comes out.

    A memory is one file with one subclass, and one line in `senri.memory.registry`: what it must have is `init_state`,
    `read` and `_scan`; docs/memory.md shows one. Its own settings are the dataclass `Options`, filled from
    `config.options`; `DEFAULTS` are the knobs that it wants to differ where nobody says otherwise.

    Shapes: q `[batch, num_heads, seq, key_dim]`, k `[batch, num_key_value_heads, seq, key_dim]`,
    v `[batch, num_key_value_heads, seq, value_dim]`; beta (write strength) and decay
    `[batch, num_key_value_heads, seq]`; mask `[batch, seq]`, True for a token and False for padding, which neither
    writes nor counts.
    `num_heads` is a multiple of `num_key_value_heads`: query head i reads the state of key/value head
    `i // (num_heads // num_key_value_heads)`. Inputs may have any floating dtype; outputs come back in q's dtype.
    """

    Options: ClassVar[type[Any]] = NoOptions
    adds_up: ClassVar[bool] = False
    """Whether states of the linear rule can be merged by adding their tensors."""
    stable_in_segments: ClassVar[bool] = False
    """Whether writes that are corrected against the segment's start stay bounded without a denominator."""
    DEFAULTS: ClassVar[dict[str, Any]] = {}

    config: MemoryConfig
    num_heads: int
    num_key_value_heads: int
    key_dim: int
    value_dim: int
    frozen = False
    """While True nothing is written: reads go on from the state as it is."""
    deciding = False
    """True while text is generated: a memory may then take whole decisions where it otherwise weighs."""

    @abstractmethod
    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the empty state; reading it gives zeros."""

    @abstractmethod
    def read(self, q: Tensor, state: LayerState) -> Tensor:
        """Read every query from the same state: `[batch, num_heads, seq, value_dim]`."""

    @abstractmethod
    def _scan(
        self,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        state: LayerState,
        beta: Tensor | None,
        decay: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor | None, LayerState]:
        """Read and write a run of tokens causally (without q: only write) and return outputs and the new state."""

    def scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: LayerState,
        beta: Tensor | None = None,
        decay: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, LayerState]:
        """Read and write a run of tokens causally: the fused form that training and prefill use.

        Cutting the run anywhere and carrying the state gives the same outputs. Outputs of padding are zeros. Gradients
        follow `config.gradient`. A frozen memory only reads.
        """
        if self.frozen:
            read = self.read(q, state)
            return (read if mask is None else read * mask.bool()[:, None, :, None]), state
        out, new_state = self._scan(q, k, v, state, beta, decay, mask)
        assert out is not None
        return out, new_state

    def write(
        self,
        k: Tensor,
        v: Tensor,
        state: LayerState,
        beta: Tensor | None = None,
        decay: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> LayerState:
        """Write tokens in order and return the new state; equals the state that `scan` returns."""
        return state if self.frozen else self._scan(None, k, v, state, beta, decay, mask)[1]

    def freeze(self) -> None:
        """Stop writing; reads go on. Says nothing about parameters and their gradients."""
        self.frozen = True

    def unfreeze(self) -> None:
        """Write again."""
        self.frozen = False

    def allocate(self, state: LayerState) -> LayerState:
        """Return the state with all its room taken, for callers whose tensors must keep their addresses."""
        return state

    def clean(
        self, state: LayerState, energy_threshold: float, max_rank: int | None = None
    ) -> tuple[LayerState, SVDCleaningStats]:
        """Return the state with only the strongest singular directions of M, and what was kept (see `cleaning`).

        Raises:
            SenriError: a threshold outside (0, 1], a `max_rank` below 1, or a memory that has no matrix to clean.
        """
        raise SenriError(f"a memory of type {self.config.type!r} cannot be cleaned: it has no matrix M.")

    def merge(self, states: Sequence[LayerState]) -> LayerState:
        """Return the state that holds what all `states` hold; only the linear rule can.

        Raises:
            SenriError: another rule, no states, states of different sizes, or a memory whose states do not add up.
        """
        raise SenriError(f"states of a memory of type {self.config.type!r} cannot be merged: they do not add up.")

    def reset_parameters(self) -> None:  # noqa: B027  (a memory without parameters has nothing to do)
        """Set every parameter to its start, in place."""
