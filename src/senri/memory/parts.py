"""Memories whose heads have several matrices ("parts"): a part is handled as a state head of its own."""

import torch
from torch import Tensor


def spread(x: Tensor, parts: int) -> Tensor:
    """Give every part its head's tensor: `[batch, heads, ...]` to `[batch, heads * parts, ...]`."""
    return x.unsqueeze(2).expand(-1, -1, parts, *x.shape[2:]).flatten(1, 2)


def spread_queries(q: Tensor, heads: int, parts: int) -> Tensor:
    """Let every query meet all parts of its head: `[batch, heads * group, seq, feature]` to
    `[batch, heads * parts * group, seq, feature]`.
    """
    grouped: Tensor = torch.unflatten(q, 1, (heads, q.shape[1] // heads))
    return spread(grouped, parts).flatten(1, 2)


def gather_reads(reads: Tensor, heads: int, parts: int, weights: Tensor | None = None) -> Tensor:
    """Add up the parts' joined reads: `[batch, heads * parts * group, seq, width]` to `[batch, heads * group, ...]`.

    Numerators and denominators are added before the division, so equal weights read as one matrix that is the parts'
    sum.

    Args:
        reads: of `spread_queries`.
        heads: key/value heads.
        parts: of each head.
        weights: `[batch, heads, parts, group, seq]`; None for equal ones.
    """
    by_part = torch.unflatten(reads, 1, (heads, parts, reads.shape[1] // (heads * parts)))
    if weights is not None:
        by_part = by_part * weights.unsqueeze(-1)
    return by_part.sum(dim=2).flatten(1, 2)


def in_turn(turn: Tensor, parts: int) -> Tensor:
    """Return 1 for the part whose turn it is and 0 for the others: turn `[batch, seq]` to `[batch, 1, parts, seq]`."""
    place = torch.arange(parts, device=turn.device)[:, None]
    return (turn.remainder(parts).unsqueeze(1) == place).unsqueeze(1)
