"""Pointing: which tokens of a text a read is like, and how much fainter a longer text would make it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


def meeting_loss(logits: Tensor, points: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of queries whose keys stand at `points`, -1 for nowhere, and the share that met.

    Args:
        logits: how much each query is like each key of the text, `[tokens, seq]`.
        points: `[tokens]`.
        share: how much each counts, `[tokens]`.
    """
    share = share * ((points >= 0) & (points < logits.shape[1]))
    points = points.clamp(min=0, max=logits.shape[1] - 1)
    wrong = F.cross_entropy(logits, points, reduction="none")
    total = share.sum().clamp(min=1e-6)
    met = (share * (logits.argmax(-1) == points)).sum() / total
    return (share * wrong).sum() / total, met


def mean_square(read: Tensor, norm_weight: Tensor, eps: float) -> Tensor:
    """Return mean squares of reads before they were normalised, `[tokens]`, for values with a mean square of 1.

    Args:
        read: `[tokens, heads x value_dim]`.
        norm_weight: of that norm, `[heads, value_dim]`.
        eps: of that norm.
    """
    size = (read.unflatten(-1, norm_weight.shape) / norm_weight).square().mean(-1)  # of each head
    by_head: Tensor = eps * size / (1 - size).clamp(min=torch.finfo(size.dtype).eps)
    return by_head.mean(-1)


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
