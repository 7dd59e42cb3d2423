"""Turns: ways to write one code so that none of them resembles another."""

import torch
import torch.nn.functional as F
from torch import Tensor

_READS, _PRODUCTS = 16, 1 << 15
"""Reads that are compared at once, and their products with codes in one turn: few enough that those in all turns stay
in a processor's cache."""


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


def by_sign(codes: Tensor, count: int) -> Tensor:
    """Return codes `[codes, width]` so that entries which have the same sign in every turn stand together,
    `[count, codes, width / count]`: those whose numbers within their half are the same modulo `count`.

    Args:
        codes: of `width` numbers; where `count` does not divide half of it, zeros are added.
        count: how many turns there are.
    """
    halves = codes.unflatten(-1, (2, -1))
    halves = F.pad(halves, (0, -halves.shape[-1] % count))
    together: Tensor = halves.unflatten(-1, (-1, count)).movedim(-1, 0).flatten(-2)
    return together.contiguous()


def in_their_best_turns(reads: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return products of reads with codes, each in its likeliest turn, `[reads, codes]`, and of each read the turn in
    which it is most like any code, `[reads]`.

    Products of entries that share their signs are summed up once; the products in all turns are a Walsh-Hadamard
    transform of these sums.

    Args:
        reads: `[reads, width]`.
        codes: of `by_sign`, `[count, codes, width / count]`.
    """
    count = len(codes)
    if count == 1:
        return F.linear(reads, codes[0]), torch.zeros(len(reads), dtype=torch.long, device=reads.device)
    signs = turns(count, 2 * count, reads.device)[:, :count].to(reads.dtype)
    likeness, best = [], []
    for some in by_sign(reads, count).split(_READS, dim=1):
        row, tops = [], []
        for part in codes.split(_PRODUCTS // some.shape[1], dim=1):
            each = (signs @ torch.bmm(some, part.mT).flatten(1)).view(count, some.shape[1], -1)
            row.append(each.amax(0))
            tops.append(each.detach().amax(-1))
        likeness.append(torch.cat(row, dim=-1))
        best.append(torch.stack(tops).amax(0).argmax(0))
    return torch.cat(likeness), torch.cat(best)
