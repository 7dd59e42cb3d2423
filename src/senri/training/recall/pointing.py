"""Pointing: which tokens of a text a read is like, and how much fainter a longer text would make it."""

from dataclasses import dataclass

import torch
from torch import Tensor

NOWHERE = -50.0
"""Log-probability of a token that a pointer gives nothing to."""


@dataclass(frozen=True)
class Pointer:
    """Reads beside everything that could have been found in the text.

    Attributes:
        cosines: of each read with what each candidate has written, `[tokens, candidates]`.
        is_right: which candidates say the token that is asked for, likewise; none where the text does not hold it.
        likely: what is added to their logits, as far as the model alone knows which of them can come; likewise.
    """

    cosines: Tensor
    is_right: Tensor
    likely: Tensor

    def log_probabilities(self, sharpness: float, clearness: Tensor) -> Tensor:
        """Return those of the right candidates together, `[tokens]`.

        Args:
            sharpness: factor of cosines in the softmax.
            clearness: of each read, `[tokens]`, in (0, 1]: its cosines are so much smaller.
        """
        shares = (sharpness * clearness.unsqueeze(-1) * self.cosines + self.likely).log_softmax(-1)
        return shares.masked_fill(~self.is_right, 2 * NOWHERE).logsumexp(-1).clamp(min=NOWHERE)

    def is_correct(self, sharpness: float) -> Tensor:
        """Return whether the likeliest candidate is a right one, `[tokens]`."""
        likeliest = (sharpness * self.cosines + self.likely).argmax(-1, keepdim=True)
        return self.is_right.gather(1, likeliest)[:, 0]

    @property
    def right_cosine(self) -> Tensor:
        """How much like the likeliest right candidate each read is, `[tokens]`; -1 where there is none."""
        return self.cosines.masked_fill(~self.is_right, -1.0).amax(-1)


def interference(cosines: Tensor, strengths: Tensor, passing: Tensor) -> Tensor:
    """Return the power that what is only passed by adds to reads, `[tokens]`, for values with a mean square of 1.

    A key that is like the query by c and was written by b brings its value into the read by about b c (what later
    writes erase of it again is of second order); values of many tokens have nothing to do with each other, so that
    their powers add up.

    Args:
        cosines: of queries with all keys of the text, `[tokens, heads, seq]`.
        strengths: write strengths, `[heads, seq]`.
        passing: `[seq]`, the tokens that count.
    """
    return (cosines * strengths * passing).square().sum(-1).mean(-1)


def clearness(size: Tensor, more: Tensor) -> Tensor:
    """Return by how much the cosines of reads shrink, `[tokens]`, where noise is added to them.

    Args:
        size: mean squares of the reads, `[tokens]`.
        more: that of the noise.
    """
    return (size / (size + more).clamp(min=torch.finfo(size.dtype).tiny)).sqrt()
