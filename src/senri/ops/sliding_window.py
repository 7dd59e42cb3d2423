"""Causal attention to the last `window` keys in time and memory O(n * window): no n x n tensor is ever made.

Queries go in blocks; a block sees its own keys and the `window - 1` before its first query, through torch's fused
attention with a small banded mask that all inner blocks share (Beltagy et al. 2020, arXiv 2004.05150, section 3.1).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.ops.inputs import check_heads
from senri.ops.sink import append_sink_features, drop_extra_features

MIN_BLOCK = 64
"""Smallest block of queries: below it the loop over blocks costs more than the keys it leaves out."""
MAX_BLOCK = 512
"""Largest block of queries: it bounds the mask, [block, block + window], for wide windows."""


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    sink: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Softmax attention where query i, aligned to the end of k, sees keys j with 0 <= i - j < window.

    Args:
        q: `[batch, query_heads, queries, key_dim]`.
        k: `[batch, heads, keys, key_dim]`; keys may exceed queries (a cached past), query_heads is a multiple of heads.
        v: `[batch, heads, keys, value_dim]`.
        window: tokens that a query sees, itself included.
        key_mask: bool `[batch, keys]`, False for padding. A query that sees no key at all gets zeros.
        scale: factor of the scores; None is `key_dim ** -0.5`.
        sink: scores `[batch, query_heads, queries]` and a value `[heads, key_dim]` of one more key that every query
            sees; then v must be as wide as k.

    Returns:
        `[batch, query_heads, queries, value_dim]` in q's dtype.

    Raises:
        SenriError: window below 1, fewer keys than queries, or shapes that do not fit.
    """
    _check(q, k, v, window, key_mask)
    queries, keys = q.shape[2], k.shape[2]
    if queries == 0:
        return q.new_zeros(*q.shape[:-1], v.shape[-1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    attend = partial(F.scaled_dot_product_attention, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    if sink is not None:
        return _with_sink(q, k, v, window, key_mask, scale, sink)
    if key_mask is None and queries == keys <= window:
        return attend(q, k, v, is_causal=True)

    if key_mask is None and queries == 1:  # decoding: sees all that is left, so it needs no mask
        return attend(q, k[:, :, -window:], v[:, :, -window:])
    return _banded(q, k, v, window, key_mask, scale, None)


def _with_sink(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    key_mask: Tensor | None,
    scale: float,
    sink: tuple[Tensor, Tensor],
) -> Tensor:
    q, k, v, sink_key, sink_value = append_sink_features(q, k, v, *sink, scale)
    return drop_extra_features(_banded(q, k, v, window, key_mask, scale, (sink_key, sink_value)))


def _banded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    key_mask: Tensor | None,
    scale: float,
    sink: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Go block by block; a sink is one more key and value, `[batch, heads, 1, dim]`, in every block."""
    queries, keys = q.shape[2], k.shape[2]
    attend = partial(F.scaled_dot_product_attention, scale=scale, enable_gqa=q.shape[1] != k.shape[1])

    past = min(keys - queries, window - 1)
    k, v = k[:, :, keys - queries - past :], v[:, :, keys - queries - past :]
    block = min(max(window // 2, MIN_BLOCK), MAX_BLOCK)
    lengths = [min(block, queries - start) for start in range(0, queries, block)]
    # Split and concatenated, not sliced: the backward of every slice fills a tensor of the full length.
    k_pieces, v_pieces = (torch.split(tensor, [past, *lengths], dim=2) for tensor in (k, v))
    before = -(-(window - 1) // block)  # blocks of keys in front of the own one that the first query may see
    outs: list[Tensor] = []
    shared: dict[tuple[int, int], Tensor] = {}
    for number, (q_block, length) in enumerate(zip(torch.split(q, lengths, dim=2), lengths, strict=True)):
        # Piece 0 is the past, so the own piece is number + 1.
        pieces = slice(max(0, number + 1 - before), number + 2)
        k_block, v_block = (k, v) if len(lengths) == 1 else (torch.cat(x[pieces], dim=2) for x in (k_pieces, v_pieces))
        seen = k_block.shape[2]
        if (length, seen) not in shared:
            shared[length, seen] = _band(length, seen, window, q.device)
        mask = shared[length, seen]
        if sink is not None:
            k_block, v_block = (torch.cat([x, extra], dim=2) for x, extra in zip((k_block, v_block), sink, strict=True))
        if key_mask is None:
            mask = mask if sink is None else F.pad(mask, (0, 1), value=True)
            out = attend(q_block, k_block, v_block, mask)
        else:
            end = keys - queries + number * block + length
            mask = mask & key_mask[:, end - seen : end][:, None, None]
            # Softmax over nothing is not a number: a blind query looks at everything and its output is thrown away.
            blind = ~mask.any(dim=-1, keepdim=True)
            mask = mask if sink is None else F.pad(mask, (0, 1), value=True)
            out = attend(q_block, k_block, v_block, mask | blind)
            out = out.masked_fill(blind, 0.0)
        outs.append(out)
    return torch.cat(outs, dim=2)


def _band(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Bool `[queries, keys]`, aligned at the end: True where 0 <= i - j < window."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (distance >= 0) & (distance < window)


def _check(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor | None) -> None:
    check_heads(q, k, v)
    if window < 1:
        raise SenriError(f"window is {window}, but it must be at least 1 (a token always sees itself).")
    if k.shape[2] < q.shape[2]:
        raise SenriError(f"k has {k.shape[2]} tokens but q has {q.shape[2]}: every query needs its own key at the end.")
    if key_mask is None:
        return
    expected = (k.shape[0], k.shape[2])
    if key_mask.dtype != torch.bool or tuple(key_mask.shape) != expected:
        raise SenriError(
            f"key_mask is {key_mask.dtype} of shape {tuple(key_mask.shape)}, but it must be bool of shape "
            f"{list(expected)}, False for padding."
        )
