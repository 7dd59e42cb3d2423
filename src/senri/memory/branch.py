"""MemoryBranch: hidden states in, memory outputs and the new state out; the whole memory as a mixer sees it."""

import torch
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.config import MemoryConfig
from senri.memory.inputs import MemoryInputs
from senri.memory.registry import build_memory


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

    def forward(
        self,
        hidden_states: Tensor,
        state: LayerState,
        shared: tuple[Tensor, Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, LayerState]:
        """Read and write a run of tokens.

        Args:
            hidden_states: `[batch, seq, hidden_size]`.
            state: of `init_state` or of the call before.
            shared: the layer's (q, k, v), `[batch, heads, seq, dim]`, without rotary positions; only with shared
                projections.
            mask: `[batch, seq]`, False for padding, which changes nothing.

        Returns:
            `[batch, num_heads, seq, value_dim]` in the dtype of the hidden states, and the new state.
        """
        tokens, inputs_state = self.inputs(hidden_states, state, shared, mask)
        q, memory_state = tokens.q, {name: state[name] for name in state if name not in inputs_state}
        out, memory_state = self.memory.scan(q, tokens.k, tokens.v, memory_state, tokens.beta, tokens.decay, mask)
        return out.to(hidden_states.dtype), {**memory_state, **inputs_state}

    def write(
        self,
        hidden_states: Tensor,
        state: LayerState,
        shared: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
    ) -> LayerState:
        """Return the state that `forward` returns, without reading.

        Args:
            hidden_states: as in `forward`.
            state: as in `forward`.
            shared: the layer's (k, v); with a short convolution (q, k, v), because its past holds queries too.
            mask: as in `forward`.
        """
        tokens, inputs_state = self.inputs(hidden_states, state, shared, mask, write_only=True)
        memory_state = {name: state[name] for name in state if name not in inputs_state}
        written = self.memory.write(tokens.k, tokens.v, memory_state, tokens.beta, tokens.decay, mask)
        return {**written, **inputs_state}
