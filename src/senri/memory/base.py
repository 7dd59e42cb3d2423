"""The one interface of all memories: pure functions from a state to a new state, and a thin holder for notebooks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from senri.memory.cleaning import SVDCleaningStats
from senri.memory.config import MemoryConfig

LayerState = dict[str, Tensor]
"""What one memory carries through a sequence, by name ("M", "z", ...). Dimension 0 of every tensor is the batch
(1 for what rows share where the scope is `batch`). Floating tensors are float32 whatever the model's dtype. Its size
never depends on how much was read."""


def state_bytes(state: LayerState) -> int:
    """Return the bytes of a state's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


class Memory(nn.Module, ABC):
    """The parameters and the rule that write to and read from a state. Pure: a state goes in, a new state comes out.

    Shapes: q `[batch, num_heads, seq, key_dim]`, k `[batch, num_key_value_heads, seq, key_dim]`,
    v `[batch, num_key_value_heads, seq, value_dim]`; beta (write strength) and decay
    `[batch, num_key_value_heads, seq]`; mask `[batch, seq]`, True for a token and False for padding, which neither
    writes nor counts.
    `num_heads` is a multiple of `num_key_value_heads`: query head i reads the state of key/value head
    `i // (num_heads // num_key_value_heads)`. Inputs may have any floating dtype; outputs come back in q's dtype.
    """

    config: MemoryConfig
    num_heads: int
    num_key_value_heads: int
    key_dim: int
    value_dim: int

    @abstractmethod
    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the empty state; reading it gives zeros."""

    @abstractmethod
    def read(self, q: Tensor, state: LayerState) -> Tensor:
        """Read every query from the same state: `[batch, num_heads, seq, value_dim]`."""

    @abstractmethod
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

    @abstractmethod
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

        Cutting the run anywhere and carrying the state gives the same outputs. Gradients follow `config.gradient`.
        """

    @abstractmethod
    def clean(
        self, state: LayerState, energy_threshold: float, max_rank: int | None = None
    ) -> tuple[LayerState, SVDCleaningStats]:
        """Return the state with only the strongest singular directions of M, and what was kept (see `cleaning`).

        Raises:
            SenriError: a threshold outside (0, 1] or a `max_rank` below 1.
        """

    @abstractmethod
    def merge(self, states: Sequence[LayerState]) -> LayerState:
        """Return the state that holds what all `states` hold; only the linear rule can.

        Raises:
            SenriError: another rule, no states, or states of different sizes.
        """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Set every parameter to its start, in place."""
