"""StrengthConvolution: smooths write strengths along a text without blurring where what is worth keeping ends."""

import torch
from torch import Tensor, nn

from senri.memory.short_convolution import convolve

_SIDES = 2


class StrengthConvolution(nn.Module):
    """The larger of two weighted sums of a head's logits: of those up to a token, and of those from it on.

    A sentence is worth keeping as a whole, so a token's strength should be like its neighbours'. One sum over both
    sides is low at the first and the last tokens of a sentence, whose neighbours on one side are not worth keeping; of
    two sums, one stays inside (as of the regions around a pixel in the filter of Kuwahara et al. 1976). Both are
    learnt, with all taps.

    `weight` is `[2 heads, kernel_size]`, the two sums of each head after each other; the token itself is `delay` taps
    before the last one.

    Args:
        heads: of the logits.
        kernel_size: taps.
        delay: tokens behind the one whose strength it is.
        around: the sums start as means of it and so many tokens before it, and behind it.
    """

    def __init__(self, heads: int, kernel_size: int, delay: int, around: int) -> None:
        super().__init__()
        self.delay, self.around = delay, around
        self.weight = nn.Parameter(torch.empty(_SIDES * heads, kernel_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the weights to the two means."""
        self.weight.zero_()
        own, (before, behind) = self.weight.shape[1] - 1 - self.delay, self.weight.unflatten(0, (-1, _SIDES)).unbind(1)
        before[:, own - self.around : own + 1] = behind[:, own : own + self.around + 1] = 1 / (self.around + 1)

    def forward(self, logits: Tensor, past: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of strengths, `[batch, seq, heads]`, and the new past.

        Args:
            logits: `[batch, seq, heads]`.
            past: those before, `[batch, kernel_size - 1, heads]`, zeros at the start.
            mask: `[batch, seq]`, False for tokens that are not there.
        """
        sums, new_past = convolve(logits, past, self.weight, mask)
        larger: Tensor = sums.unflatten(-1, (-1, _SIDES)).amax(-1)
        return larger, new_past
