"""One run of tokens through a state of matrices, whichever the granularity: what `MatrixMemory` is built on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from senri.memory.config import MemoryConfig
from senri.memory.reading import product
from senri.memory.segment_scan import Running, SegmentGrid, segment_scan
from senri.memory.token_scan import token_scan


@dataclass(frozen=True)
class Run:
    """Features of a run of tokens. Heads are state heads; with parts, every part of a head is a state head.

    Attributes:
        queries: `[batch, query heads, seq, feature]`; None to write only.
        keys: `[batch, heads, seq, feature]`; None to read only.
        values: `[batch, heads, seq, value_dim]`.
        strength: beta, `[batch, heads, seq]`, 0 for padding.
        fading: decay, `[batch, heads, seq]`, 1 for padding; None without decay.
        grid: where each token stands in its segment; None where writes are visible at once.
        scale: factor of every write: 1, or 1 / (batch * segment_length) where rows share a state.
    """

    queries: Tensor | None
    keys: Tensor | None = None
    values: Tensor | None = None
    strength: Tensor | None = None
    fading: Tensor | None = None
    grid: SegmentGrid | None = None
    scale: float = 1.0


def scan(run: Run, running: Running, config: MemoryConfig) -> tuple[Tensor | None, Running]:
    """Read and write (without keys: only read); return the joined reads `[batch, query heads, seq, width]` and state.

    Reads are None without queries. See `senri.memory.reading` for what "joined" means.
    """
    queries, keys, values, strength = run.queries, run.keys, run.values, run.strength
    if keys is None:
        assert queries is not None
        return product(queries, visible(running, run.scale, config)), running
    assert values is not None and strength is not None
    if run.grid is None:
        asked = keys if queries is None else queries
        reads, written = token_scan(asked, keys, values, running.committed, strength, run.fading, config)
        return (None if queries is None else reads), Running(written, written, None)
    return segment_scan(queries, keys, values, running, strength, run.fading, run.grid, run.scale, config)


def visible(running: Running, scale: float, config: MemoryConfig) -> Tensor:
    """Return the joined state that a read sees after the run: with `update_then_retrieve` also the unfinished segment's
    writes, `[batch or 1, heads, feature, width]`.
    """
    if config.granularity == "token" or config.order == "retrieve_then_update":
        return running.committed
    kept = running.committed if running.decayed is None else running.committed * running.decayed[..., None, None]
    return kept + running.pending * scale


def segment_of_tokens(mask: Tensor | None, count: Tensor, batch: int, seq: int, segment_length: int) -> Tensor:
    """Return how many segments end before each token since the one that `count` stands in, `[batch, seq]`.

    Args:
        mask: `[batch, seq]`, False for tokens that are not there (they get the segment of the last real one).
        count: tokens seen before, `[batch]` or `[1]`.
        batch: rows.
        seq: tokens of the call.
        segment_length: tokens of a segment.
    """
    index = torch.arange(seq, device=count.device).expand(batch, seq)
    rank = index if mask is None else (mask.cumsum(dim=1) - 1).clamp(min=0)
    return (count.remainder(segment_length).unsqueeze(1) + rank).div(segment_length, rounding_mode="floor")
