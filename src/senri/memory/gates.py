"""Gates and strengths: logits to shares."""

import math

import torch
from torch import Tensor


def precise_sigmoid(logits: Tensor) -> Tensor:
    """Return the sigmoid in at least float32: bfloat16 would round a decay of 0.999 to 1."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()


def strengths(logits: Tensor) -> Tensor:
    """Return the sigmoid, `[batch, seq, heads]` to `[batch, heads, seq]`."""
    return precise_sigmoid(logits).transpose(1, 2)


def within_budget(beta: Tensor, written: Tensor, budget: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return write strengths whose odds fall as budget / sum of strengths once the sum is above the budget, and the sum
    behind them.

    What a text says again and again is written weakly and costs next to nothing. But of a text that says new things all
    the time only so much is written for each time that the sum doubles, and what was written early is not lost.

    Args:
        beta: `[batch, heads, seq]`, below 1; of one row for all, if `written` is that of each.
        written: sum of the strengths before, `[batch, heads]`, as they were before they fell.
        budget: a sum up to which nothing falls.
        mask: `[batch, seq]`, False for padding.
    """
    counted = beta if mask is None else beta * mask.bool().unsqueeze(1)
    sums = written.unsqueeze(-1) + counted.cumsum(dim=-1)
    # In odds b / (1 - b), divided by f: b / (b + f (1 - b)).
    return beta / (beta + (sums / budget).clamp(min=1.0) * (1.0 - beta)), written + counted.sum(dim=-1)


def logit(probability: float) -> float:
    """Return the number whose sigmoid this is."""
    return math.log(probability / (1.0 - probability))
