"""Local attention (RoPE) and a memory (NoPE), mixed per head by a learned gate: Infini-attention's layer."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from senri.mixers.branches import build_branch
from senri.mixers.context import MixerMasks
from senri.mixers.recall import let_pass, recall
from senri.mixers.softmax import SoftmaxAttention


class MemoryGate(nn.Module):
    """One logit per head; `sigmoid` of it is the memory's share of that head's output.

    A module rather than a bare parameter, so that PEFT can name it in `modules_to_save`.
    """

    def __init__(self, num_heads: int, initial_logit: float) -> None:
        super().__init__()
        self.initial_logit = initial_logit
        self.weight = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every head to the initial logit."""
        nn.init.constant_(self.weight, self.initial_logit)

    def forward(self, memory: Tensor, local: Tensor) -> Tensor:
        """Mix two `[batch, seq, heads, head_dim]`: g * memory + (1 - g) * local (Munkhdalai et al. 2024, eq. 6)."""
        share = torch.sigmoid(self.weight).to(local.dtype)[:, None]
        return share * memory + (1 - share) * local


class WindowMemory(SoftmaxAttention):
    """Gate mixer: projections are shared with local attention unless the memory has its own; one output projection."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx, sliding=config.layer_types[layer_idx] == "hybrid_sliding")
        memory = config.memory_config_of(layer_idx)
        self.shares_projections = memory.projections == "shared"
        self.memory_enabled = True
        self.memory = build_branch(config, layer_idx)
        self.memory_gate = MemoryGate(config.num_attention_heads, memory.gate_init)

    def forward(
        self,
        hidden_states: Tensor,
        masks: MixerMasks,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix tokens `[batch, seq, hidden]`; with the memory disabled this is local attention alone."""
        qkv = self.project(hidden_states)
        out, weights = self.attend(qkv, masks, position_embeddings, past_key_values, **kwargs)
        if self.memory_enabled:
            shared = qkv if self.shares_projections else None
            remembered = recall(self.memory, hidden_states, shared, masks, past_key_values, self.layer_idx)
            # A memory with heads of its own, such as one as wide as the model, is mixed in slices of the base's heads.
            out = self.memory_gate(remembered.reshape(out.shape), out)
        else:
            let_pass(hidden_states, past_key_values, self.layer_idx)
        return self.o_proj(out.flatten(2)), weights
