"""Softmax attention, untouched, plus a memory branch with its own projections: the base stays whole."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from senri.mixers.branches import build_branch
from senri.mixers.context import MixerMasks
from senri.mixers.recall import let_pass, recall
from senri.mixers.softmax import SoftmaxAttention

_LEAST = 1e-3
"""Sizes of reads are told apart down to this share of a whole value's mean square, and up to as near to it."""


class ReadStrength(nn.Module):
    """How strongly a read is added, per head and token: whether anybody asks, and whether anything was found.

    The first is learnt from the hidden state, as the memory's projections see it. The second is the read's size: a
    query that meets its key reads a whole value, one that meets none reads little. `memory.eps` says which mean square
    counts as half found; a read that is normalised with a small eps is as large where nothing was found as where
    something was.

    Args:
        hidden_size: of the hidden states.
        num_heads: of the memory.
        initial: strength at the start where a read is half found, in (0, 1).
    """

    def __init__(self, hidden_size: int, num_heads: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.proj = nn.Linear(hidden_size, num_heads)
        self.found = nn.Parameter(torch.ones(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the strength to its start, whatever the hidden state."""
        nn.init.zeros_(self.proj.weight)
        nn.init.constant_(self.proj.bias, math.log(self.initial / (1.0 - self.initial)))
        nn.init.ones_(self.found)

    def forward(self, remembered: Tensor, hidden_states: Tensor) -> Tensor:
        """Scale `[batch, seq, heads, value_dim]`, normalised reads; what the memory sees `[batch, seq, hidden]`."""
        return remembered * torch.sigmoid(self.logits(remembered, hidden_states)).unsqueeze(-1)

    def when_asked(self, remembered: Tensor) -> Tensor:
        """Scale reads as `forward` does, but for a hidden state that says what one says at the start."""
        logits = math.log(self.initial / (1.0 - self.initial)) + self.found * self._size(remembered)
        return remembered * torch.sigmoid(logits).unsqueeze(-1)

    def logits(self, remembered: Tensor, hidden_states: Tensor) -> Tensor:
        """Return the logits of the strengths, `[batch, seq, heads]`, for what `forward` takes."""
        logits: Tensor = self.proj(hidden_states) + self.found * self._size(remembered)
        return logits

    def _size(self, remembered: Tensor) -> Tensor:
        """Return log(r^2 / eps) of reads of size r, `[batch, seq, heads]`."""
        share = remembered.float().square().mean(-1).clamp(_LEAST, 1 - _LEAST)  # r^2 / (r^2 + eps) of a read of size r
        return torch.log(share / (1 - share)).to(remembered.dtype)


class AddedMemory(SoftmaxAttention):
    """Add mixer: attention + projection(memory). The projection starts at zero, so a fresh branch adds nothing."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx, sliding=config.layer_types[layer_idx] == "hybrid_sliding")
        sizes = config.memory_sizes(layer_idx)
        self.memory_enabled = True
        self.memory = build_branch(config, layer_idx)
        self.memory_o_proj = nn.Linear(sizes["num_heads"] * sizes["value_dim"], config.hidden_size, bias=False)
        nn.init.zeros_(self.memory_o_proj.weight)
        memory = config.memory_config_of(layer_idx)
        if memory.learned_read_strength:
            self.memory_read = ReadStrength(config.hidden_size, sizes["num_heads"], memory.read_strength)

    def forward(
        self,
        hidden_states: Tensor,
        masks: MixerMasks,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix tokens `[batch, seq, hidden]`; with the memory disabled this is the base's attention."""
        out, weights = super().forward(hidden_states, masks, position_embeddings, past_key_values, **kwargs)
        if self.memory_enabled:
            remembered = recall(self.memory, hidden_states, None, masks, past_key_values, self.layer_idx)
            if hasattr(self, "memory_read"):
                remembered = self.memory_read(remembered, self.memory.inputs.seen(hidden_states))
            out = out + self.memory_o_proj(remembered.flatten(2))
        else:
            let_pass(hidden_states, past_key_values, self.layer_idx)
        return out, weights
