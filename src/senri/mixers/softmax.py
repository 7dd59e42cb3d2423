"""Softmax attention, full or in a sliding window: the base's own mixer, with transformers' attention backends."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb  # handles partial rotary
from transformers.models.llama.modeling_llama import eager_attention_forward

from senri.errors import SenriError
from senri.mixers.context import BandedMask, MixerMasks
from senri.mixers.sink import AttentionSink, eager_attention_with_sink, see_one_more_key
from senri.ops import append_sink_features, drop_extra_features, sliding_window_attention

QKV = tuple[Tensor, Tensor, Tensor]


class SenriMixer(nn.Module):
    """Base of all mixers: the four projections under the names that Llama checkpoints use.

    Args:
        config: a `SenriConfig`.
        layer_idx: index of the layer.
        has_qkv: whether the layer projects queries, keys and values itself.
        has_output: whether the layer has the base's output projection.
    """

    def __init__(self, config: Any, layer_idx: int, has_qkv: bool = True, has_output: bool = True) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        width, kv_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        if has_qkv:
            self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
            self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
            self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        if has_output:
            self.o_proj = nn.Linear(width, config.hidden_size, bias=config.o_bias)

    def project(self, hidden_states: Tensor) -> QKV:
        """Return q `[batch, heads, seq, head_dim]` and k, v `[batch, kv_heads, seq, head_dim]`, before positions."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        return (
            self.q_proj(hidden_states).view(shape).transpose(1, 2),
            self.k_proj(hidden_states).view(shape).transpose(1, 2),
            self.v_proj(hidden_states).view(shape).transpose(1, 2),
        )


class SoftmaxAttention(SenriMixer):
    """Causal softmax attention with rotary positions; `sliding` limits it to `config.sliding_window` tokens."""

    def __init__(self, config: Any, layer_idx: int, sliding: bool) -> None:
        super().__init__(config, layer_idx)
        self.is_causal = True
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.sliding_window = config.sliding_window if sliding else None
        if sliding and config.attention_sink:
            self.sink = AttentionSink(config.num_attention_heads, config.num_key_value_heads, self.head_dim)

    def forward(
        self,
        hidden_states: Tensor,
        masks: MixerMasks,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix tokens: hidden states `[batch, seq, hidden]` in and out, and the attention weights where they exist."""
        out, weights = self.attend(self.project(hidden_states), masks, position_embeddings, past_key_values, **kwargs)
        return self.o_proj(out.flatten(2)), weights

    def attend(
        self,
        qkv: QKV,
        masks: MixerMasks,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return `[batch, seq, heads, head_dim]` before the output projection, and the weights where they exist."""
        q, k, v = qkv
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        mask = masks.full_attention if self.sliding_window is None else masks.sliding_attention
        sink = None
        if masks.beyond_window is not None and hasattr(self, "sink"):
            self._check_backend()
            sink = (self.sink(masks.beyond_window), self.sink.value)
        if isinstance(mask, BandedMask):
            assert self.sliding_window is not None
            out = sliding_window_attention(
                q, k, v, window=self.sliding_window, key_mask=mask.key_mask, scale=self.scaling, sink=sink
            )
            return out.transpose(1, 2), None
        if sink is None:
            return self._attend_by_backend(q, k, v, mask, **kwargs)
        if self.config._attn_implementation == "eager":
            dropout = self.attention_dropout if self.training else 0.0
            return eager_attention_with_sink(q, k, v, mask, *sink, self.scaling, dropout)
        q, k, v, sink_key, sink_value = append_sink_features(q, k, v, *sink, self.scaling)
        k, v = torch.cat([k, sink_key], dim=2), torch.cat([v, sink_value], dim=2)
        mask = see_one_more_key(mask, q, k)
        out, _ = self._attend_by_backend(q, k, v, mask, **kwargs)
        return drop_extra_features(out), None

    def _check_backend(self) -> None:
        if self.config._attn_implementation not in ("sdpa", "eager"):
            raise SenriError(
                f"attention_sink needs the attention implementation 'sdpa' or 'eager', not "
                f"{self.config._attn_implementation!r}: call model.set_attn_implementation('sdpa')."
            )

    def _attend_by_backend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        attention: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        return attention(
            self,
            q,
            k,
            v,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
