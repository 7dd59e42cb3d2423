"""One state for several layers: the first of them writes it, the others read it with query projections of their own.

A reading layer goes over the writing layer's keys and values with its own queries, from the same state on. So what it
reads is causal and does not depend on where calls are cut, as if the state were its own, and only one state is kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.base import LayerState, Memory
from senri.memory.channels import split_heads
from senri.memory.config import MemoryConfig
from senri.memory.input_whitening import InputWhitening
from senri.memory.inputs import MemoryTokens
from senri.memory.short_convolution import convolved_dim, query_convolution


@dataclass(frozen=True)
class SharedWrite:
    """What the writing layer did in this forward pass, for the layers that read with it.

    Attributes:
        memory: of the writing layer.
        tokens: what it wrote.
        before: its memory's state before that.
        mask: `[batch, seq]`, False for padding.
        is_trained: whether the writing layer's projections want gradients.
    """

    memory: Memory
    tokens: MemoryTokens
    before: LayerState
    mask: Tensor | None
    is_trained: bool

    def read(self, q: Tensor) -> Tensor:
        """Read as the writing layer does, with other queries `[batch, num_heads, seq, key_dim]`.

        Raises:
            SenriError: the writing layer's gradients would be lost.
        """
        tokens = self.tokens
        if torch.is_grad_enabled() and self.is_trained and not tokens.v.requires_grad:
            raise SenriError(
                "reentrant gradient checkpointing would lose the gradients of a state that layers share: set "
                "gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        return self.memory.scan(q, tokens.k, tokens.v, self.before, tokens.beta, tokens.decay, self.mask)[0]


class QueryInputs(nn.Module):
    """The query side of `MemoryInputs`: a projection and, where configured, the short convolution with its past."""

    def __init__(
        self, config: MemoryConfig, hidden_size: int, num_heads: int, num_key_value_heads: int, key_dim: int
    ) -> None:
        super().__init__()
        self.config, self.key_dim = config, key_dim
        self.num_heads, self.num_key_value_heads = num_heads, num_key_value_heads
        self.whitening = InputWhitening(hidden_size) if config.whitened_inputs else None
        self.convolved_dim = convolved_dim(config, key_dim)  # of a head's channels, those that are no dense ones
        self.q_proj = nn.Linear(hidden_size, num_heads * self.convolved_dim)
        if config.short_convolution:
            self.conv_q = query_convolution(config, hidden_size, num_heads, key_dim)

    def reset_parameters(self) -> None:
        """Set every parameter to its start."""
        if self.whitening is not None:
            self.whitening.reset_parameters()
        self.q_proj.reset_parameters()
        if self.config.short_convolution:
            self.conv_q.reset_parameters()

    def seen(self, hidden_states: Tensor) -> Tensor:
        """Return what projections, gates and read strengths see of hidden states `[..., hidden_size]`."""
        return hidden_states if self.whitening is None else self.whitening(hidden_states)

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the convolution's empty past; nothing where there is none."""
        if not self.config.short_convolution:
            return {}
        past = self.config.short_convolution - 1
        return {"conv_q": torch.zeros(batch_size, past, self.num_heads * self.convolved_dim, device=device)}

    def forward(self, hidden_states: Tensor, state: LayerState, mask: Tensor | None) -> tuple[Tensor, LayerState]:
        """Return queries `[batch, num_heads, seq, key_dim]` for `[batch, seq, hidden_size]`, and the new past."""
        hidden_states = self.seen(hidden_states)
        q = self.q_proj(hidden_states)
        if not self.config.short_convolution:
            return split_heads(q, self.num_heads), {}
        q, past = self.conv_q(q, state["conv_q"].expand(q.shape[0], -1, -1), mask, hidden_states)
        return split_heads(q, self.num_heads), {"conv_q": past}


class SharedReader(nn.Module):
    """Stands where a `MemoryBranch` would, in a layer that reads another layer's state. Writes nothing."""

    def __init__(
        self,
        config: MemoryConfig,
        hidden_size: int,
        num_heads: int,
        num_key_value_heads: int,
        key_dim: int,
        value_dim: int,
    ) -> None:
        """Build for the (already resolved) sizes of the writing layer's memory."""
        super().__init__()
        self.config, self.num_key_value_heads, self.value_dim = config, num_key_value_heads, value_dim
        self.inputs = QueryInputs(config, hidden_size, num_heads, num_key_value_heads, key_dim)

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the state before the first token; mostly there is none."""
        return self.inputs.init_state(batch_size, device)

    def allocate(self, state: LayerState) -> LayerState:
        """Return the state as it is: its room never changes."""
        return state

    def forward(
        self, hidden_states: Tensor, state: LayerState, shared_write: SharedWrite | None, mask: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """Read for tokens `[batch, seq, hidden_size]`; return `[batch, num_heads, seq, value_dim]` and the new state.

        Raises:
            SenriError: the writing layer did not run before in this forward pass.
        """
        if shared_write is None:
            raise SenriError("a layer that shares a state runs without the layer that writes it: run the whole model.")
        q, new_state = self.inputs(hidden_states, state, mask)
        return shared_write.read(q).to(hidden_states.dtype), new_state

    def write(
        self,
        hidden_states: Tensor,
        state: LayerState,
        shared: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        frozen: bool = False,
    ) -> LayerState:
        """Return the state that `forward` returns; `shared` and `frozen` change nothing here."""
        new_state: LayerState = self.inputs(hidden_states, state, mask)[1]
        return new_state
