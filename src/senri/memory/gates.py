"""Gates and strengths: logits to shares."""

import math

import torch
from torch import Tensor


def precise_sigmoid(logits: Tensor) -> Tensor:
    """Return the sigmoid in at least float32: bfloat16 would round a decay of 0.999 to 1."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()


def strengths(logits: Tensor, lowered_by: Tensor | None = None) -> Tensor:
    """Return the sigmoid, `[batch, seq, heads]` to `[batch, heads, seq]`; of logits lowered by `[batch, seq]`."""
    if lowered_by is not None:
        logits = logits - lowered_by.unsqueeze(-1)  # float32 at least
    return precise_sigmoid(logits).transpose(1, 2)


def logit(probability: float) -> float:
    """Return the number whose sigmoid this is."""
    return math.log(probability / (1.0 - probability))
