"""A memory in place of softmax attention: fixed state, no positions (NoPE), no window."""

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from senri.mixers.branches import build_branch
from senri.mixers.context import MixerMasks
from senri.mixers.recall import let_pass, recall
from senri.mixers.softmax import SenriMixer


class MemoryAlone(SenriMixer):
    """The layer's attention is its memory. The base's projections are the start, or the memory has its own."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        shared = config.memory_config_of(layer_idx).projections == "shared"
        sizes = config.memory_sizes(layer_idx)
        width = sizes["num_heads"] * sizes["value_dim"]
        fits_base = width == config.num_attention_heads * config.head_dim
        super().__init__(config, layer_idx, has_qkv=shared, has_output=fits_base)
        self.shares_projections = shared
        self.memory_enabled = True
        self.memory = build_branch(config, layer_idx)
        if not fits_base:
            self.memory_o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        masks: MixerMasks,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Mix tokens `[batch, seq, hidden]` through the memory; there are no attention weights.

        With the memory disabled nothing is mixed: the layer adds zero, the control "this attention removed".
        """
        if not self.memory_enabled:
            let_pass(hidden_states, past_key_values, self.layer_idx)
            return hidden_states.new_zeros(hidden_states.shape), None
        shared = self.project(hidden_states) if self.shares_projections else None
        out = recall(self.memory, hidden_states, shared, masks, past_key_values, self.layer_idx).flatten(2)
        project_out = self.memory_o_proj if hasattr(self, "memory_o_proj") else self.o_proj
        return project_out(out), None
