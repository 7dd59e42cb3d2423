"""Turns: ways to write one code so that none of them resembles another."""

import math

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


def in_their_best_turns(
    reads: Tensor, codes: Tensor, shown: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return products of reads with codes, each in its likeliest turn, `[reads, codes]`; of each read the turn in which
    it is most like any code, `[reads]`; and how like it the likeliest code is in the turn after that of each which is
    shown, `[reads, shown]`, without a gradient, or None. Turns go by places, so that is what was written behind it.

    Products of entries that share their signs are summed up once; the products in all turns are a Walsh-Hadamard
    transform of these sums.

    Args:
        reads: `[reads, width]`.
        codes: of `by_sign`, `[count, codes, width / count]`.
        shown: numbers of codes, `[reads, shown]`, -1 for none. None of them counts as what was written behind another;
            None where nobody asks.
    """
    count = len(codes)
    if count == 1:
        return F.linear(reads, codes[0]), torch.zeros(len(reads), dtype=torch.long, device=reads.device), None
    signs = turns(count, 2 * count, reads.device)[:, :count].to(reads.dtype)
    likeness, best, behind = [], [], []
    for block, some in enumerate(by_sign(reads, count).split(_READS, dim=1)):
        left_out = None if shown is None else shown[block * _READS : (block + 1) * _READS]
        row, tops = [], []
        size = _PRODUCTS // some.shape[1]
        for number, part in enumerate(codes.split(size, dim=1)):
            each = (signs @ torch.bmm(some, part.mT).flatten(1)).view(count, some.shape[1], -1)
            row.append(each.amax(0))
            others = each.detach()
            if left_out is not None:
                here = are_among(left_out - number * size, part.shape[1])
                hidden = torch.where(here, -math.inf, 0.0)  # to add this is several times as fast as masked_fill
                others = others + hidden if each.requires_grad else others.add_(hidden)
            tops.append(others.amax(-1))
        top = torch.stack(tops).amax(0)
        if left_out is not None:
            own = torch.einsum("snw,snmw->snm", some.detach(), codes[:, left_out.clamp(min=0)].detach())
            own = (signs @ own.flatten(1)).view_as(own)
            behind.append(top.T.gather(1, (own.argmax(0) + 1) % count))
            # The read's own turn is that of any code, also of those that were left out.
            top = torch.maximum(top, own.masked_fill(left_out < 0, -math.inf).amax(-1))
        likeness.append(torch.cat(row, dim=-1))
        best.append(top.argmax(0))
    return torch.cat(likeness), torch.cat(best), torch.cat(behind) if behind else None


def are_among(numbers: Tensor, count: int) -> Tensor:
    """Return which of 0 to `count` - 1 are among some numbers, `[..., count]` bool.

    Args:
        numbers: `[..., some]`, whole; those outside are none.
        count: how many there are.
    """
    among = torch.zeros(*numbers.shape[:-1], count + 1, dtype=torch.bool, device=numbers.device)
    places = torch.where((numbers >= 0) & (numbers < count), numbers, count).long()
    return among.scatter_(-1, places, True)[..., :-1]  # the last one is for those outside
