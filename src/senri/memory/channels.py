"""Heads and channels: the two shapes that queries, keys and values have."""

from collections.abc import Callable

from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[batch, seq, heads * dim]` to `[batch, heads, seq, dim]`."""
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


def channels_last(
    function: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    past: Tensor,
    mask: Tensor | None,
    *more: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run a function of `[batch, seq, channels]` on `[batch, heads, seq, dim]`."""
    out, past = function(x.transpose(1, 2).flatten(2), past.expand(x.shape[0], -1, -1), mask, *more)
    return split_heads(out, x.shape[1]), past
