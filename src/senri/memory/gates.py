"""Gates and strengths: logits to shares."""

import torch
from torch import Tensor


def precise_sigmoid(logits: Tensor) -> Tensor:
    """Return the sigmoid in at least float32: bfloat16 would round a decay of 0.999 to 1."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
