"""Writes that become visible at the end of their segment (`granularity: segment`), for rows at different positions.

Every row counts its own real tokens, so at one moment rows may stand at different places of their segments. The tokens
of a call are therefore laid on a grid of segments x slots per row; the loop goes over segments, never over tokens, and
a row commits its pending writes when its segment is full. The grid's size follows from shapes alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from senri.memory.config import MemoryConfig
from senri.memory.reading import correction, join_values, product
from senri.ops import linear_attention


@dataclass(frozen=True)
class Running:
    """The parts of a state that a scan over segments carries.

    Attributes:
        committed: joined state that reads see, `[batch or 1, heads, feature, width]`.
        pending: writes of the unfinished segment, unscaled, `[batch, heads, feature, width]`.
        decayed: product of the unfinished segment's decays, `[batch, heads]`; None without decay.
    """

    committed: Tensor
    pending: Tensor
    decayed: Tensor | None


@dataclass(frozen=True)
class SegmentGrid:
    """Where each token of a call stands.

    Attributes:
        segments: number of segments that any row may touch.
        source: token of every slot, `[batch, segments * slots]`, `seq` for an empty slot; None when token = slot.
        slot: slot of every token, `[batch, seq]`, `segments * slots` for padding; None when token = slot.
        complete: whether the segment is full by the end of the call, `[batch or 1, segments]`.
    """

    segments: int
    source: Tensor | None
    slot: Tensor | None
    complete: Tensor

    def place(self, x: Tensor) -> tuple[Tensor, ...]:
        """Cut `[batch, heads, seq, dim]` into a `[batch, heads, slots, dim]` per segment, zeros in empty slots."""
        if self.source is not None:
            x = _take(x, self.source)
        # unbind, not indexing: indexing in the loop makes the backward quadratic in the number of segments
        slots = x.shape[2] // self.segments
        return x.view(*x.shape[:2], self.segments, slots, x.shape[3]).unbind(2)

    def collect(self, pieces: list[Tensor]) -> Tensor:
        """Put the segments' outputs back in token order; zeros for padding."""
        out = torch.cat(pieces, dim=2)
        return out if self.slot is None else _take(out, self.slot)


def make_grid(
    mask: Tensor | None, count: Tensor, batch: int, seq: int, segment_length: int, aligned: bool = False
) -> SegmentGrid:
    """Lay a call's tokens on the grid.

    Args:
        mask: `[batch, seq]`, False for tokens that are not there; None when all are.
        count: tokens seen before, `[batch]`, or `[1]` for all rows.
        batch: rows.
        seq: tokens of the call, at least 1.
        segment_length: tokens of a segment.
        aligned: the caller knows that every row starts a segment.
    """
    offset = count.remainder(segment_length)
    segments = -(-(seq + (0 if aligned else segment_length - 1)) // segment_length)
    ends = torch.arange(1, segments + 1, device=count.device) * segment_length
    present = seq if mask is None else mask.sum(dim=1)
    complete = (offset + present).unsqueeze(1) >= ends
    if segments == 1 and (mask is None or seq == 1):
        return SegmentGrid(segments, None, None, complete)
    slots = min(segment_length, seq)
    index = torch.arange(seq, device=count.device).expand(batch, seq)
    rank = index if mask is None else mask.cumsum(dim=1) - 1
    position = offset.unsqueeze(1) + rank
    segment = position.div(segment_length, rounding_mode="floor")
    # a row's first segment is filled from slot 0 wherever the row stands, so that a short call needs few slots
    slot = segment * slots + torch.where(segment == 0, rank, position.remainder(segment_length))
    if mask is not None:
        slot = torch.where(mask, slot, segments * slots)
    source = torch.full((batch, segments * slots + 1), seq, device=count.device, dtype=torch.int64)
    return SegmentGrid(segments, source.scatter(1, slot, index)[:, :-1], slot, complete)


def segment_scan(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    running: Running,
    beta: Tensor,
    decay: Tensor | None,
    grid: SegmentGrid,
    scale: float,
    config: MemoryConfig,
) -> tuple[Tensor | None, Running]:
    """Read and write a run of tokens segment by segment.

    Corrections of the delta rules are taken against the state at the segment's start (Munkhdalai et al. 2024, eq. 4-5),
    decayed to the token. `gradient: segment` commits `committed.detach() + pending`, and corrects against the detached
    state: a read sees gradients of the last committed segment only.

    Args:
        q: query features `[batch, heads, seq, feature]`; None to write only.
        k: key features `[batch, kv_heads, seq, feature]`.
        v: values `[batch, kv_heads, seq, value_dim]`.
        running: the carried state.
        beta: write strength `[batch, kv_heads, seq]`, 0 for padding.
        decay: `[batch, kv_heads, seq]`, 1 for padding; only with the rule `gated_delta`.
        grid: of this call.
        scale: factor of every write: 1, or 1 / (batch * segment_length) where rows share a state.
        config: rule, normaliser, order, gradient, scope.

    Returns:
        The joined reads `[batch, heads, seq, width]` (None without q) and the new carried state.
    """
    empty = [None] * grid.segments
    q_pieces = empty if q is None else grid.place(q)
    beta_pieces = grid.place(beta.unsqueeze(-1))
    # an empty slot is placed as 0, and the logarithm of "no decay" is 0
    log_pieces = empty if decay is None else grid.place(_log(decay).unsqueeze(-1))
    pieces = zip(q_pieces, grid.place(k), grid.place(v), beta_pieces, log_pieces, grid.complete.unbind(1), strict=True)
    reads = []
    for q_s, k_s, v_s, beta_s, log_s, full in pieces:
        read, running = _one_segment(q_s, k_s, v_s, running, beta_s, log_s, full, scale, config)
        if read is not None:
            reads.append(read)
    return (grid.collect(reads) if reads else None), running


def commit(running: Running, full: Tensor, scale: float, config: MemoryConfig) -> Running:
    """Make the pending writes of the rows `full` (`[batch or 1]`, bool) visible and empty them."""
    rows = full.view(-1, 1, 1, 1)
    base = running.committed.detach() if config.gradient == "segment" else running.committed
    update, kept = running.pending * scale, running.decayed
    if config.scope == "batch":
        update = update.sum(dim=0, keepdim=True)
        kept = None if kept is None else kept.mean(dim=0, keepdim=True)
    target = base + update if kept is None else base * kept[..., None, None] + update
    decayed = None if running.decayed is None else torch.where(full.view(-1, 1), 1.0, running.decayed)
    return Running(
        committed=torch.where(rows, target, running.committed),
        pending=torch.where(rows, 0.0, running.pending),
        decayed=decayed,
    )


def _one_segment(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    running: Running,
    beta: Tensor,
    log_decay: Tensor | None,
    full: Tensor,
    scale: float,
    config: MemoryConfig,
) -> tuple[Tensor | None, Running]:
    """Read and write one segment's slots; beta and log_decay are `[batch, heads, slots, 1]`."""
    committed, pending = running.committed, running.pending
    base = committed.detach() if config.gradient == "segment" else committed
    decay = decayed = None
    if log_decay is not None:
        assert running.decayed is not None
        decay = log_decay.squeeze(-1).exp()
        decayed = running.decayed.unsqueeze(-1) * log_decay.squeeze(-1).cumsum(dim=-1).exp()
    if config.rule != "linear":
        v = v - correction(k, base, decayed, config)
    values = join_values(v, config)
    read = None
    if q is not None:
        read = product(q, committed)
        if config.order == "update_then_retrieve":
            own, _ = linear_attention(q, k, values, pending, beta=beta.squeeze(-1), decay=decay, inclusive=True)
            if decayed is not None:
                group = q.shape[1] // k.shape[1]
                read = read * decayed.repeat_interleave(group, dim=1).unsqueeze(-1)
            read = read + own * scale
    weights = beta
    if log_decay is not None:
        assert decayed is not None
        total = log_decay.sum(dim=2, keepdim=True)
        weights = beta * (total - log_decay.cumsum(dim=2)).exp()
        pending = pending * total.exp()
        decayed = decayed[..., -1]
    pending = pending + (k * weights).transpose(-1, -2) @ values
    return read, commit(Running(committed, pending, decayed), full, scale, config)


def _log(decay: Tensor) -> Tensor:
    """Logarithm that stays finite where a decay has underflowed to 0."""
    return decay.clamp(min=torch.finfo(decay.dtype).tiny).log()


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Gather tokens `[batch, heads, seq, dim]` at `index` `[batch, n]`; the index `seq` gives zeros."""
    batch, heads, _, dim = x.shape
    padded = torch.cat([x, x.new_zeros(batch, heads, 1, dim)], dim=2)
    return padded.gather(2, index[:, None, :, None].expand(batch, heads, -1, dim))
