"""MultiMemory: several independent memories per head; a query attends to those whose keys are like it."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senri.memory.base import LayerState
from senri.memory.config import MemoryConfig
from senri.memory.features import l2
from senri.memory.matrix import MatrixMemory
from senri.memory.parts import gather_reads
from senri.memory.scan import Run, scan
from senri.memory.segment_scan import Running
from senri.memory.typed import check_at_least


@dataclass
class MultiOptions:
    """Options of `MultiMemory`.

    Args:
        num_memories: memories per head.
        routing: which memory is written: `round_robin` takes the next one with every segment, `learned` spreads a write
            over all by a softmax of the key.
    """

    num_memories: int = 4
    routing: Literal["round_robin", "learned"] = "round_robin"

    def __post_init__(self) -> None:
        check_at_least("memory.options", {"num_memories": self.num_memories}, 1)


class MultiMemory(MatrixMemory):
    """K memories per head, each with its own matrix and rule; reads are mixed by attention to their key summaries.

    A memory's key summary is the mean of the keys written to it, as vectors of length one; the attention of a query is
    a softmax over memories of the cosine-like product with the summary, times a learned scale per head. The weights
    multiply numerator and denominator before the division, so equal weights read as one memory that is the sum, and an
    empty memory takes no share. Nothing is cut off: weights are continuous in training and in evaluation.

    State, besides that of `MatrixMemory` with `parts` = `num_memories`: `summary` `[batch, num_key_value_heads, parts,
    feature + 1]`, the sum of the unit keys written and, last, of their strengths; with granularity `segment` also
    `pending_summary`, and for `gated_delta` it fades as M does.

    Parameters: `attention_scale` `[num_heads]`; with learned routing `router` `[num_key_value_heads, feature, parts]`.
    """

    Options = MultiOptions
    DEFAULTS: ClassVar[dict[str, Any]] = {"rule": "delta"}
    options: MultiOptions

    @property
    def parts(self) -> int:
        """The memories of a head."""
        return self.options.num_memories

    @property
    def takes_turns(self) -> bool:
        """Whether segments are written round robin."""
        return self.options.routing == "round_robin"

    def make_parameters(self) -> None:
        """Create the scale of the attention and, with learned routing, the router."""
        super().make_parameters()
        self.attention_scale = nn.Parameter(torch.empty(self.num_heads))
        if self.options.routing == "learned":
            self.router = nn.Parameter(torch.empty(self.num_key_value_heads, self.feature_width, self.parts))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the scale to that of softmax attention (the root of the width) and the router to a random start."""
        super().reset_parameters()
        nn.init.constant_(self.attention_scale, math.sqrt(self.key_dim))
        if self.options.routing == "learned":
            nn.init.normal_(self.router, std=1.0)

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the empty state; reading it gives zeros."""
        state = super().init_state(batch_size, device)
        # as z, with one number more
        for name, like in (("summary", "M"), ("pending_summary", "pending_M")):
            if like in state:
                state[name] = torch.zeros(*state[like].shape[:-2], self.feature_width + 1, device=device)
        return state

    def write_shares(self, keys: Tensor, segment: Tensor) -> Tensor:
        """Write the memory whose turn it is, or all of them by the router's softmax."""
        if self.options.routing == "round_robin":
            return super().write_shares(keys, segment)
        logits = l2(keys, self.config) @ self.router.to(keys.dtype)
        return logits.softmax(dim=-1).transpose(-1, -2)

    def read_weights(self, queries: Tensor, attention: Tensor) -> Tensor:
        """Say how much each memory counts for a query; 1 on average over the memories.

        Args:
            queries: features `[batch, num_key_value_heads, parts, group, seq, feature]`, the same for all parts.
            attention: a softmax over the parts, `[batch, num_key_value_heads, parts, group, seq]`.
        """
        return self.parts * attention

    @cached_property
    def _summing(self) -> MemoryConfig:
        """The knobs by which summaries are summed: the linear rule, read without a denominator."""
        return replace(self.config, rule="linear", normaliser="rmsnorm", options={})

    def _scan_state(self, run: Run, state: LayerState, batch: int) -> tuple[Tensor | None, LayerState]:
        reads, running = scan(run, self._running(state, batch), self.config)
        sums, summed = scan(self._summary_run(run), self._running_summary(state, batch), self._summing)
        new = self._parts_of(running)
        new["summary"] = self._settled("summary", summed.committed.squeeze(-1))
        if self.config.granularity == "segment":
            new["pending_summary"] = self._settled("pending_summary", summed.pending.squeeze(-1))
        if reads is None or sums is None or run.queries is None:
            return None, new
        heads, parts = self.num_key_value_heads, self.parts
        queries = run.queries.unflatten(1, (heads, parts, -1))
        weights = self.read_weights(queries, self._attention(sums.squeeze(-1).unflatten(1, (heads, parts, -1))))
        return gather_reads(reads, heads, parts, weights), new

    def _attention(self, sums: Tensor) -> Tensor:
        """Softmax over parts; sums `[batch, heads, parts, group + 1, seq]`: products with queries, last the counts."""
        products, counts = sums[..., :-1, :], sums[..., -1:, :]
        likeness = products / counts.clamp(min=self.config.eps)
        scale = self.attention_scale.to(sums.dtype).view(sums.shape[1], 1, -1, 1)
        return (likeness * scale).softmax(dim=2)

    def _summary_run(self, run: Run) -> Run:
        """Return the run that sums unit keys, each with a further feature that is always 1, and reads both apart."""
        keys = values = queries = None
        if run.keys is not None:
            keys = F.pad(l2(run.keys, self.config), (0, 1), value=1.0)
            values = keys.new_ones(*keys.shape[:-1], 1)
        if run.queries is not None:
            by_part = l2(run.queries, self.config).unflatten(1, (self.num_key_value_heads * self.parts, -1))
            asking_count = F.pad(torch.zeros_like(by_part[:, :, :1]), (0, 1), value=1.0)
            queries = torch.cat([F.pad(by_part, (0, 1)), asking_count], dim=2).flatten(1, 2)
        return replace(run, queries=queries, keys=keys, values=values)

    def _running_summary(self, state: LayerState, batch: int) -> Running:
        committed = self._as_heads(state["summary"]).unsqueeze(-1)
        if self.config.scope == "sequence":
            committed = committed.expand(batch, -1, -1, -1)
        if self.config.granularity == "token":
            return Running(committed, committed, None)
        waiting = self._waiting(state, "pending_summary")
        assert waiting is not None
        pending = self._as_heads(waiting).unsqueeze(-1).expand(batch, -1, -1, -1)
        return Running(committed, pending, self._running(state, batch).decayed)
