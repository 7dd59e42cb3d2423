"""An attention sink as one more key: a fixed score per query and a fixed value, for any fused attention.

The score is carried by features appended to queries and keys, so that no backend needs to know of it.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

EXTRA_FEATURES = 8
"""Features appended to a head: one carries the score, the rest keep the width a multiple of 8, as kernels like it."""


class WithSink(NamedTuple):
    """Queries, keys and values with appended features, and the sink's own key and value, `[batch, heads, 1, dim]`."""

    q: Tensor
    k: Tensor
    v: Tensor
    sink_key: Tensor
    sink_value: Tensor


def append_sink_features(q: Tensor, k: Tensor, v: Tensor, scores: Tensor, value: Tensor, scale: float) -> WithSink:
    """Append features such that `scale * (q . k)` is unchanged for every key and `scores` for the sink's key.

    Args:
        q: `[batch, query_heads, queries, dim]`.
        k: `[batch, heads, keys, dim]`.
        v: `[batch, heads, keys, dim]`, as wide as k: fused attention on CPUs wants that.
        scores: `[batch, query_heads, queries]`, the sink's score in every query's softmax; strongly negative hides it.
        value: `[heads, dim]`, the sink's value.
        scale: factor of the scores, which the attention that follows must use as well.
    """
    carried = (scores / scale).to(q.dtype)[..., None]
    sink_key = F.pad(k.new_ones(*k.shape[:2], 1, 1), (k.shape[-1], EXTRA_FEATURES - 1))
    sink_value = F.pad(value.to(v.dtype), (0, EXTRA_FEATURES))[None, :, None].expand(v.shape[0], -1, -1, -1)
    return WithSink(
        q=_append(q, carried),
        k=F.pad(k, (0, EXTRA_FEATURES)),
        v=F.pad(v, (0, EXTRA_FEATURES)),
        sink_key=sink_key,
        sink_value=sink_value,
    )


def drop_extra_features(out: Tensor) -> Tensor:
    """Return an attention's output `[..., dim + extra]` without the appended features."""
    return out[..., :-EXTRA_FEATURES]


def _append(q: Tensor, carried: Tensor) -> Tensor:
    padded = F.pad(carried, (0, EXTRA_FEATURES - 1))
    return F.pad(q, (0, EXTRA_FEATURES)) + F.pad(padded, (q.shape[-1], 0))
