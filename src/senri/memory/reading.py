"""How features meet a state: plain products shared by both granularities, and the normalised read.

A state with the `denominator` normaliser is handled as one matrix `[..., feature, value_dim + 1]` whose last column is
z (the sum of written features), because z obeys the same recurrence as M with every value equal to 1.
"""

import torch
from torch import Tensor

from senri.memory.config import MemoryConfig


def join_state(matrix: Tensor, z: Tensor | None) -> Tensor:
    """Put z beside M as a further value column; M alone where there is no z."""
    return matrix if z is None else torch.cat([matrix, z.unsqueeze(-1)], dim=-1)


def split_state(joined: Tensor, config: MemoryConfig) -> tuple[Tensor, Tensor | None]:
    """Undo `join_state`."""
    if config.normaliser == "denominator":
        return joined[..., :-1], joined[..., -1]
    return joined, None


def join_values(values: Tensor, config: MemoryConfig) -> Tensor:
    """Give the values `[..., value_dim]` the column of ones that writes z."""
    if config.normaliser == "denominator":
        return torch.cat([values, values.new_ones(*values.shape[:-1], 1)], dim=-1)
    return values


def product(features: Tensor, state: Tensor) -> Tensor:
    """Multiply features `[batch, heads, seq, feature]` with a state `[batch or 1, kv_heads, feature, width]`.

    Query head i meets the state of head `i // (heads // kv_heads)`; returns `[batch, heads, seq, width]`.
    """
    batch, heads, seq, width = features.shape
    kv_heads = state.shape[1]
    grouped = features.reshape(batch, kv_heads, heads // kv_heads * seq, width)
    return (grouped @ state).reshape(batch, heads, seq, state.shape[-1])


def correction(k: Tensor, state: Tensor, decayed: Tensor | None, config: MemoryConfig) -> Tensor:
    """Return what the state holds for each key, the part a delta write takes away: `[batch, heads, seq, value_dim]`.

    Args:
        k: key features `[batch, heads, seq, feature]`.
        state: joined state `[batch or 1, heads, feature, width]`.
        decayed: what decay has left of the state at each key, `[batch, heads, seq]`; None for all of it.
        config: `normaliser` and `eps`. Where the denominator does not exceed eps there is nothing to take away.
    """
    held = product(k, state)
    if decayed is not None:
        held = held * decayed.unsqueeze(-1)
    if config.normaliser == "rmsnorm":
        return held
    return held[..., :-1] * reciprocal(held[..., -1:], config.eps)


def reciprocal(denominator: Tensor, eps: float) -> Tensor:
    """Return 1 / denominator, and 0 where the denominator does not exceed eps; finite gradients everywhere."""
    usable = denominator > eps
    return torch.where(usable, 1.0 / torch.where(usable, denominator, 1.0), 0.0)


def normalise(read: Tensor, weight: Tensor | None, config: MemoryConfig) -> Tensor:
    """Turn a joined read `[batch, heads, seq, width]` into the memory's output `[batch, heads, seq, value_dim]`.

    `denominator`: phi(q) M / clamp(phi(q) z, min=eps) (Munkhdalai et al. 2024, "Leave No Context Behind", eq. 3).
    `rmsnorm`: RMSNorm of each head with the learned weight `[heads, value_dim]`. Zeros stay zeros.
    """
    if config.normaliser == "denominator":
        return read[..., :-1] / read[..., -1:].clamp(min=config.eps)
    assert weight is not None
    scale = torch.rsqrt(read.square().mean(dim=-1, keepdim=True) + config.eps)
    return read * scale * weight.to(read.dtype).unsqueeze(-2)
