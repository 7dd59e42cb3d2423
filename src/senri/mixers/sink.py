"""A learned stand-in for a text's first token, which trained models lean on long after a window has left it behind.

Softmax must put its weight somewhere; pretrained models put what they do not need on the first token (Xiao et al. 2023,
arXiv 2309.17453, section 3.1). Once a sliding window drops that token the model breaks. Keeping its key would tie a
session to absolute positions, so the sink is a score per head and a value per key/value head, measured on the base.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN_SCORE = -1000.0
"""Score of a sink that must not be seen: its weight is exactly zero, and it fits into every half-precision format."""


class AttentionSink(nn.Module):
    """Parameters of one layer's sink.

    Args:
        num_heads: query heads; each has a score.
        num_key_value_heads: heads of values.
        head_dim: width of a value.
    """

    def __init__(self, num_heads: int, num_key_value_heads: int, head_dim: int) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.empty(num_heads))
        self.value = nn.Parameter(torch.empty(num_key_value_heads, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin as "softmax plus one": score 0, value 0."""
        nn.init.zeros_(self.score)
        nn.init.zeros_(self.value)

    def forward(self, beyond_window: Tensor) -> Tensor:
        """Return the score for every query, `[batch, num_heads, seq]`.

        Args:
            beyond_window: bool `[batch, seq]`; where False the first token itself is still in the window, and the sink
                is hidden.
        """
        return torch.where(beyond_window[:, None], self.score[:, None], HIDDEN_SCORE)


def see_one_more_key(mask: Any, q: Tensor, k: Tensor) -> Any:
    """Widen a mask by a last key that every query sees.

    Args:
        mask: bool or additive `[batch, 1, queries, keys]`, or None for a causal one.
        q: `[batch, heads, queries, dim]`.
        k: `[batch, heads, keys + 1, dim]`, the new key included.
    """
    if mask is None:
        queries, keys = q.shape[2], k.shape[2] - 1
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return F.pad(mask, (0, 1), value=True if mask.dtype == torch.bool else 0.0)


def eager_attention_with_sink(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scores: Tensor, value: Tensor, scaling: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention written out, for those who want to see the weights: those of real tokens, the sink's share left out.

    Args:
        q: `[batch, num_heads, queries, head_dim]`.
        k: `[batch, num_key_value_heads, keys, head_dim]`.
        v: as k.
        mask: additive, `[batch, 1, queries, keys]`.
        scores: the sink's, `[batch, num_heads, queries]`.
        value: the sink's, `[num_key_value_heads, head_dim]`.
        scaling: factor of the scores of real keys.
        dropout: share of weights that is dropped.

    Returns:
        `[batch, queries, num_heads, head_dim]`, and the weights `[batch, num_heads, queries, keys]`.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    logits = q @ k.transpose(-1, -2) * scaling + mask
    shares = torch.cat([logits, scores.to(logits.dtype)[..., None]], dim=-1).softmax(dim=-1, dtype=torch.float32)
    shares = F.dropout(shares.to(q.dtype), p=dropout)
    weights, sink_share = shares[..., :-1], shares[..., -1:]
    out = weights @ v + sink_share * value.to(v.dtype).repeat_interleave(group, dim=0)[None, :, None]
    return out.transpose(1, 2), weights
