"""Causal depthwise short convolution on queries or keys, with its past in the state so that chunk cuts never show."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """Mix every channel with its own `kernel_size - 1` predecessors: y_t = sum_j weight[j] x_(t - kernel_size + 1 + j).

    `weight` is `[channels, kernel_size]`, the last tap is the token itself. It starts as a pure delay of `delay` tokens
    (0: the identity), or of more in some channels.

    Args:
        channels: of all heads.
        kernel_size: taps.
        delay: of the first channels of every head, in tokens.
        shares: of the channels of every head that are delayed by 0, 1, 2, ... further tokens.
        heads: how many heads the channels belong to.
    """

    def __init__(
        self, channels: int, kernel_size: int, delay: int = 0, shares: Sequence[float] = (1.0,), heads: int = 1
    ) -> None:
        super().__init__()
        size = channels // heads
        ends = [round(size * share / sum(shares)) for share in accumulate(shares)]
        of_head = [delay + sum(channel >= end for end in ends) for channel in range(size)]
        self.delays = tuple(of_head * heads)
        self.weight = nn.Parameter(torch.empty(channels, kernel_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the weight to pure delays."""
        self.weight.zero_()
        self.weight[torch.arange(len(self.delays)), [-1 - delay for delay in self.delays]] = 1.0

    def forward(self, x: Tensor, past: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
            x: `[batch, seq, channels]`.
            past: the inputs before x, `[batch, kernel_size - 1, channels]`, zeros at the start.
            mask: `[batch, seq]`, False for tokens that are not there.

        Returns:
            The output in x's dtype (zeros at padding) and the new past in the past's dtype.
        """
        weight = self.weight.to(past.dtype).unsqueeze(1)

        def mix(inputs: Tensor) -> Tensor:
            if inputs.shape[1] < weight.shape[-1]:  # no token
                return inputs[:, :0]
            with torch.autocast(inputs.device.type, enabled=False):  # in the past's dtype, that of the state
                return F.conv1d(inputs.transpose(1, 2), weight, groups=len(weight)).transpose(1, 2)

        return over_real_tokens(x, past, mask, mix)


def shift_tokens(x: Tensor, past: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Give every token its predecessor's vector: `[batch, seq, channels]`, past `[batch, 1, channels]`; as above."""
    return over_real_tokens(x, past, mask, lambda inputs: inputs[:, :-1])


def over_real_tokens(
    x: Tensor, past: Tensor, mask: Tensor | None, function: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Apply a causal function of [past, x] as if padding were not there.

    `function` takes `[batch, past + seq, channels]` and returns the seq outputs. Wherever padding stands, real tokens
    see only real predecessors, and the new past is the last real ones.
    """
    length, seq = past.shape[1], x.shape[1]
    if mask is None:
        inputs = torch.cat([past, x.to(past.dtype)], dim=1)
        return function(inputs).to(x.dtype), inputs[:, seq:]
    mask = mask.bool()
    order = mask.logical_not().to(torch.int8).argsort(dim=1, stable=True)
    inputs = torch.cat([past, _rows(x.to(past.dtype), order)], dim=1)
    rank = (mask.cumsum(dim=1) - 1).clamp(min=0)
    out = torch.where(mask.unsqueeze(-1), _rows(function(inputs), rank), 0.0)
    last = mask.sum(dim=1, keepdim=True) + torch.arange(length, device=x.device)
    return out.to(x.dtype), _rows(inputs, last)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
