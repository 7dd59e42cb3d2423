"""Masks of one forward pass: for full attention, for the sliding window, and for memories."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import (
    create_causal_mask,
    create_sliding_window_causal_mask,
    find_packed_sequence_indices,
)
from transformers.utils.import_utils import is_tracing

from senri.mixers.context import BandedMask

FULL_TYPES = ("full_attention", "hybrid")
SLIDING_TYPES = ("sliding_attention", "hybrid_sliding")


def create_senri_masks(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Any,
    past_key_values: Cache | None,
    position_ids: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    start_layer: int = 0,
    **kwargs: Any,
) -> dict[str, Any]:
    """Build every mask that the layers of `config` need.

    `generate` calls this ahead of a compiled forward, the model calls it otherwise.

    Args:
        config: a `SenriConfig`.
        inputs_embeds: `[batch, seq, hidden]`; only its shape, dtype and device are used.
        attention_mask: None, `[batch, tokens seen + seq]` with 0 for padding, or a ready-made 4D mask.
        past_key_values: the cache, if there is one.
        position_ids: `[batch, seq]`.
        sequence_ids: `[batch, seq]` of `packed_sequences`.
        start_layer: the first layer that runs; the cache of those below it says nothing.
        **kwargs: other arguments of transformers' mask functions; unused.

    Returns:
        the fields of `MixerMasks` by name.
    """
    arguments = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
        "position_ids": position_ids,
    }
    masks: dict[str, Any] = {"tokens": _token_mask(inputs_embeds, attention_mask), "sequence_ids": sequence_ids}
    full_layer = _first_layer(config, FULL_TYPES, start_layer)
    if full_layer is not None:
        masks["full_attention"] = create_causal_mask(**arguments, layer_idx=full_layer)
    sliding_layer = _first_layer(config, SLIDING_TYPES, start_layer)
    if sliding_layer is not None:
        if sequence_ids is None and _is_banded(config, inputs_embeds, attention_mask, past_key_values):
            masks["sliding_attention"] = BandedMask(
                _key_mask(inputs_embeds, attention_mask, past_key_values, sliding_layer)
            )
        else:
            masks["sliding_attention"] = create_sliding_window_causal_mask(**arguments, layer_idx=sliding_layer)
        if config.attention_sink:
            masks["beyond_window"] = _beyond_window(
                config, inputs_embeds, attention_mask, past_key_values, position_ids
            )
    return masks


def packed_sequences(
    position_ids: Tensor | None, attention_mask: Any, past_key_values: Cache | None, batch_size: int
) -> Tensor | None:
    """Return which packed sequence each token belongs to, `[batch, seq]`, or None where rows are whole sequences.

    Without mask and cache, a jump in the caller's own `position_ids` marks the next sequence.
    """
    if position_ids is None or attention_mask is not None or past_key_values is not None:
        return None
    return find_packed_sequence_indices(position_ids.expand(batch_size, -1))


def tokens_seen(config: Any, past_key_values: Cache | None, start_layer: int) -> int:
    """Return how many tokens a cache holds, by the first layer from `start_layer` on that has keys and values."""
    if past_key_values is None:
        return 0
    layer = _first_layer(config, (*FULL_TYPES, *SLIDING_TYPES), start_layer)
    return int(past_key_values.get_seq_length() if layer is None else past_key_values.get_seq_length(layer))


def _first_layer(config: Any, types: tuple[str, ...], start: int = 0) -> int | None:
    return next((i for i, kind in enumerate(config.layer_types) if i >= start and kind in types), None)


def _token_mask(inputs_embeds: Tensor, attention_mask: Any) -> Tensor | None:
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        return None
    mask = attention_mask[:, -inputs_embeds.shape[1] :].to(inputs_embeds.device, torch.bool)
    if not is_tracing(mask) and bool(mask.all()):
        return None
    return mask.contiguous()


def _beyond_window(
    config: Any, inputs_embeds: Tensor, attention_mask: Any, past_key_values: Cache | None, position_ids: Tensor | None
) -> Tensor | None:
    batch, length = inputs_embeds.shape[:2]
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        positions = attention_mask.to(inputs_embeds.device).cumsum(-1)[:, -length:] - 1
    elif position_ids is not None:
        positions = position_ids.expand(batch, -1)
    else:
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = (torch.arange(length, device=inputs_embeds.device) + seen).expand(batch, -1)
    beyond = positions >= config.sliding_window
    is_static = is_tracing(beyond) or (past_key_values is not None and past_key_values.is_compileable)
    return beyond if is_static or bool(beyond.any()) else None


def _is_banded(config: Any, inputs_embeds: Tensor, attention_mask: Any, past_key_values: Cache | None) -> bool:
    """Whether a mask over all pairs would cost more than the band: only SDPA needs one, and only beyond the window."""
    if config._attn_implementation != "sdpa" or inputs_embeds.shape[1] <= config.sliding_window:
        return False
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 4:
        return False
    return past_key_values is None or not past_key_values.is_compileable


def _key_mask(
    inputs_embeds: Tensor, attention_mask: Any, past_key_values: Cache | None, layer_idx: int
) -> Tensor | None:
    if attention_mask is None or not is_tracing(attention_mask) and bool(attention_mask.all()):
        return None
    length, offset = inputs_embeds.shape[1], 0
    if past_key_values is not None:
        layer = past_key_values.layers[layer_idx]
        assert isinstance(layer, CacheLayerMixin)
        length, offset = layer.get_mask_sizes(length)
    mask: Tensor = attention_mask[:, offset : offset + length]
    return mask.to(inputs_embeds.device, torch.bool)
