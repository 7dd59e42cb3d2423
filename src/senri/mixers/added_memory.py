"""Softmax attention, untouched, plus a memory branch with its own projections: the base stays whole."""

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from senri.mixers.branches import build_branch
from senri.mixers.context import MixerMasks
from senri.mixers.recall import let_pass, recall
from senri.mixers.softmax import SoftmaxAttention


class AddedMemory(SoftmaxAttention):
    """Add mixer: attention + projection(memory). The projection starts at zero, so a fresh branch adds nothing."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx, sliding=config.layer_types[layer_idx] == "hybrid_sliding")
        sizes = config.memory_sizes(layer_idx)
        self.memory_enabled = True
        self.memory = build_branch(config, layer_idx)
        self.memory_o_proj = nn.Linear(sizes["num_heads"] * sizes["value_dim"], config.hidden_size, bias=False)
        nn.init.zeros_(self.memory_o_proj.weight)

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
            out = out + self.memory_o_proj(remembered.flatten(2))
        else:
            let_pass(hidden_states, past_key_values, self.layer_idx)
        return out, weights
