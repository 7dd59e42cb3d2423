"""Turns: ways to write one code so that none of them resembles another."""

import torch
from torch import Tensor


def turns(places: Tensor, count: int, width: int) -> Tensor:
    """Return the signs that codes of tokens at these places are multiplied by, `[..., width]` of 1 and -1 in float32.

    The k-th of `count` turns is the Walsh function (-1)^(ones in the binary form of k & i) of the entry i, the same in
    both halves of a code. What has been turned twice in one way is what it was, as when it is bound in Gayler 1998
    ("Multiplicative binding, representation operators & analogy", section 4); and as a code's halves are cosines and
    sines of the same angles, its turns are orthogonal to each other where `count` divides `width` / 2.

    Args:
        places: whole numbers, `[...]`.
        count: how many turns there are, a power of two.
        width: of a code.
    """
    index = torch.arange(width, device=places.device) % (width // 2)
    both = (places % count).unsqueeze(-1) & index
    odd = torch.zeros_like(both)
    for bit in range(count.bit_length() - 1):
        odd = odd ^ (both >> bit & 1)
    return (1 - 2 * odd).float()
