"""SegmentPlaces: where the tokens of a call stand in segments of which the first may have begun before."""

from collections.abc import Sequence

import torch
from torch import Tensor


class SegmentPlaces:
    """Where the tokens of a call stand in segments, rows at different positions; sizes follow from shapes alone.

    Args:
        count: tokens seen before, `[batch]`.
        mask: `[batch, seq]`, False for tokens that are not there; None when all are.
        batch: rows.
        seq: tokens of the call.
        length: tokens of a segment.
    """

    def __init__(self, count: Tensor, mask: Tensor | None, batch: int, seq: int, length: int) -> None:
        self.length, self.segments = length, -(-(seq + length - 1) // length)
        begun, last = count.remainder(length).unsqueeze(1), self.segments * length
        present = seq if mask is None else mask.sum(dim=1, keepdim=True)
        index = torch.arange(seq, device=count.device).expand(batch, seq)
        rank = index if mask is None else mask.cumsum(dim=1) - 1
        place = begun + rank
        self.place = place if mask is None else torch.where(mask, place, last)
        end = begun + present
        ends = torch.arange(1, self.segments + 1, device=count.device) * length
        self.full = end >= ends
        behind = torch.arange(length - 1, device=count.device)
        self._is_left = behind < end.remainder(length)
        self._left = (end.div(length, rounding_mode="floor") * length + behind).clamp(max=last - 1)

    def lay(self, x: Tensor, past: Tensor | None) -> Tensor:
        """Lay tokens `[batch, heads, seq, dim]` behind those of the unfinished segment; zeros where there is none:
        `[batch, heads, segments * length, dim]`.
        """
        batch, heads, seq, dim = x.shape
        room = x.new_zeros(batch, heads, self.segments * self.length + 1, dim)
        if past is not None:
            room[:, :, : self.length - 1] = past.to(x.dtype)
        return room.scatter(2, self.place[:, None, :, None].expand(batch, heads, seq, dim), x)[:, :, :-1]

    def collect(self, x: Tensor) -> Tensor:
        """Take what stands at the tokens' places; any for padding."""
        index = self.place.clamp(max=x.shape[2] - 1)
        return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    def rest(self, x: Tensor) -> Tensor:
        """Return what stands in the unfinished segment, zeros behind it: `[batch, heads, length - 1, dim]`."""
        index = self._left[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        return x.gather(2, index) * self._is_left[:, None, :, None]

    def rows_written(self, strength: Tensor) -> Sequence[int | None]:
        """Return to how many rows each segment is written: those in which it is full, or none where no strength is
        above what its dtype rounds by; None where a compiled graph cannot ask.

        Args:
            strength: laid, `[batch, heads, segments * length, 1]`.
        """
        if torch.compiler.is_compiling():
            return [None] * self.segments
        strongest = strength.detach().unflatten(2, (-1, self.length)).amax(dim=(0, 1, 3, 4))
        rows = self.full.sum(0) * (strongest > torch.finfo(strength.dtype).eps)
        counts: list[int] = rows.tolist()  # once a call: a GPU must be waited for
        return counts
