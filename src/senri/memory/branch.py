"""MemoryBranch: hidden states in, memory outputs and the new state out; the whole memory as a mixer sees it."""

import torch
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.cleaning import SVDCleaningStats
from senri.memory.config import MemoryConfig
from senri.memory.inputs import MemoryInputs
from senri.memory.registry import build_memory
from senri.memory.shared_read import SharedWrite


class MemoryBranch(nn.Module):
    """One layer's memory: `inputs` make queries, keys, values and strengths, `memory` reads and writes.

    The state is one dictionary with the tensors of both. `num_heads`, `num_key_value_heads`, `key_dim` and `value_dim`
    are the memory's real sizes: the base's, or those of the configuration with `own` projections.
    """

    def __init__(
        self,
        config: MemoryConfig,
        hidden_size: int,
        num_heads: int,
        num_key_value_heads: int,
        key_dim: int,
        value_dim: int,
    ) -> None:
        """Build from the base's sizes; those that `config` sets replace them.

        Raises:
            SenriError: an unknown memory type or head numbers that do not fit together.
        """
        super().__init__()
        self.config = config
        self.num_heads = config.num_heads or num_heads
        self.num_key_value_heads = config.num_key_value_heads or num_key_value_heads
        self.key_dim = config.key_dim or key_dim
        self.value_dim = config.value_dim or value_dim
        if self.num_heads % self.num_key_value_heads:
            raise SenriError(
                f"the memory has {self.num_heads} query heads, which is no multiple of its {self.num_key_value_heads} "
                f"key/value heads: set memory.num_heads and memory.num_key_value_heads."
            )
        sizes = (hidden_size, self.num_heads, self.num_key_value_heads, self.key_dim, self.value_dim)
        self.inputs = MemoryInputs(config, *sizes)
        self.memory = build_memory(config, *sizes)

    def reset_parameters(self) -> None:
        """Set every parameter to its start, in place."""
        self.inputs.reset_parameters()
        self.memory.reset_parameters()

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the state before the first token."""
        return {**self.memory.init_state(batch_size, device), **self.inputs.init_state(batch_size, device)}

    def allocate(self, state: LayerState) -> LayerState:
        """Return the state with all its room taken (see `Memory.allocate`)."""
        mine = self.inputs.init_state(1)
        memory_state = self.memory.allocate({name: state[name] for name in state if name not in mine})
        return {**memory_state, **{name: state[name] for name in mine}}

    def forward(
        self,
        hidden_states: Tensor,
        state: LayerState,
        shared: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, LayerState]:
        """Read and write a run of tokens.

        Args:
            hidden_states: `[batch, seq, hidden_size]`.
            state: of `init_state` or of the call before.
            shared: the layer's (q, k, v), `[batch, heads, seq, dim]`, without rotary positions, where projections are
                shared; (v, ids) for a memory that copies.
            mask: `[batch, seq]`, False for padding, which changes nothing.

        Returns:
            `[batch, num_heads, seq, value_dim]` in the dtype of the hidden states, and the new state.
        """
        out, new_state, _ = self.run(hidden_states, state, shared, mask)
        return out, new_state

    def run(
        self,
        hidden_states: Tensor,
        state: LayerState,
        shared: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, LayerState, SharedWrite]:
        """Do as `forward`, and return also what was written, for layers that share this state."""
        tokens, inputs_state = self.inputs(hidden_states, state, shared, mask)
        memory_state = {name: state[name] for name in state if name not in inputs_state}
        is_trained = any(parameter.requires_grad for parameter in self.inputs.parameters())
        write = SharedWrite(self.memory, tokens, memory_state, mask, is_trained)
        out, memory_state = self.memory.scan(
            tokens.q, tokens.k, tokens.v, memory_state, tokens.beta, tokens.decay, mask
        )
        return out.to(hidden_states.dtype), {**memory_state, **inputs_state}, write

    def clean(
        self, state: LayerState, energy_threshold: float, max_rank: int | None = None
    ) -> tuple[LayerState, SVDCleaningStats]:
        """Clean the memory's matrices (see `Memory.clean`); the inputs' past stays."""
        cleaned, stats = self.memory.clean(state, energy_threshold, max_rank)
        return cleaned, stats

    def write(
        self,
        hidden_states: Tensor,
        state: LayerState,
        shared: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        frozen: bool = False,
    ) -> LayerState:
        """Return the state that `forward` returns, without reading.

        Args:
            hidden_states: as in `forward`.
            state: as in `forward`.
            shared: the layer's (k, v); with a short convolution (q, k, v), because its past holds queries too;
                (v, ids) for a memory that copies.
            mask: as in `forward`.
            frozen: leave the memory as it is, so that only the past of the inputs moves on; False writes even where the
                memory has been frozen since.
        """
        tokens, inputs_state = self.inputs(hidden_states, state, shared, mask, write_only=True)
        memory_state = {name: state[name] for name in state if name not in inputs_state}
        if frozen:
            return {**memory_state, **inputs_state}
        _, written = self.memory._scan(None, tokens.k, tokens.v, memory_state, tokens.beta, tokens.decay, mask)
        return {**written, **inputs_state}
