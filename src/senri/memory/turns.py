"""Turns: ways to write one code so that none of them resembles another."""

import torch
from torch import Tensor


def turns(count: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Return the signs that a code is multiplied by in each way to turn it, `[count, width]` of 1 and -1 in float32.

    The k-th is the Walsh function (-1)^(ones in the binary form of k & i) of the entry i, the same in both halves of a
    code. What has been turned twice in one way is what it was, as in multiplicative binding (Gayler 1998,
    "Multiplicative binding, representation operators & analogy"); and as a code's halves are cosines and sines of the
    same angles, its turns are orthogonal to each other where `count` divides `width` / 2.

    Args:
        count: how many turns there are, a power of two.
        width: of a code.
        device: of the result.
    """
    entry = torch.arange(width, device=device) % (width // 2)
    both = torch.arange(count, device=device).unsqueeze(-1) & entry
    odd = torch.zeros_like(both)
    for bit in range(count.bit_length() - 1):
        odd = odd ^ (both >> bit & 1)
    return (1 - 2 * odd).float()
