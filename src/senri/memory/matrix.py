"""MatrixMemory: what all memories made of matrices of outer products share; a subclass says how parts are used."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from senri.memory.base import LayerState
from senri.memory.calibrated import CalibratedMemory
from senri.memory.checks import check_call, check_rows
from senri.memory.cleaning import SVDCleaningStats, clean_matrix
from senri.memory.merging import merge_layer_states
from senri.memory.parts import gather_reads, in_turn, spread, spread_queries
from senri.memory.reading import join_state, split_state
from senri.memory.scan import Run, scan, segment_of_tokens
from senri.memory.segment_scan import Running, make_grid
from senri.memory.watching import WatchedWrites


class MatrixMemory(WatchedWrites, CalibratedMemory):
    """Matrices M of outer products phi(k) v^T and the sums z of the features written, with all knobs of `MemoryConfig`.

    State tensors (float32; counts int64), fixed in size. `room` is `[num_key_value_heads]`, or with `parts`
    `[num_key_value_heads, parts]`:

    - `M` `[batch, *room, feature, value_dim]`, with the `denominator` normaliser also `z` `[batch, *room, feature]`;
    - `count` `[batch]`: tokens seen;
    - granularity `segment`: `pending_M`, `pending_z`, the writes of the unfinished segment, and for `gated_delta`
      `pending_decay` `[batch, *room]`, the product of its decays;
    - where parts are written in turn: `segments` `[batch]`, how many segments were finished. Only one part at a time
      has an unfinished segment then, so the pending tensors have no dimension for parts.

    Scope `batch`: M, z and counts have one row for all; the pending writes stay per row, because a row reads its own.
    """

    adds_up = True

    @property
    def parts(self) -> int | None:
        """Matrices per head; None for one, without a dimension of its own."""
        return None

    @property
    def takes_turns(self) -> bool:
        """Whether which part is written depends on how many segments were finished."""
        return False

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the empty state; reading it gives zeros."""
        shared = 1 if self.config.scope == "batch" else batch_size
        room = (self.num_key_value_heads,) if self.parts is None else (self.num_key_value_heads, self.parts)
        waiting = room[:1] if self.takes_turns else room
        column, width = (self.feature_width,), (self.feature_width, self.value_dim)
        segments, has_z = self.config.granularity == "segment", self.config.normaliser == "denominator"
        state = {
            "M": torch.zeros(shared, *room, *width, device=device),
            "count": torch.zeros(shared, dtype=torch.int64, device=device),
        }
        if has_z:
            state["z"] = torch.zeros(shared, *room, *column, device=device)
        if segments:
            state["pending_M"] = torch.zeros(batch_size, *waiting, *width, device=device)
        if segments and has_z:
            state["pending_z"] = torch.zeros(batch_size, *waiting, *column, device=device)
        if segments and self.config.rule == "gated_delta":
            state["pending_decay"] = torch.ones(batch_size, *waiting, device=device)
        if self.takes_turns:
            state["segments"] = torch.zeros(shared, dtype=torch.int64, device=device)
        return state

    def read(self, q: Tensor, state: LayerState) -> Tensor:
        """Read every query from the same state: `[batch, num_heads, seq, value_dim]`.

        With `update_then_retrieve` a read also sees the unfinished segment's writes.
        """
        check_rows(state, q.shape[0])
        with torch.autocast(q.device.type, enabled=False):
            run = Run(self._queries(q.to(state["M"].dtype)), scale=self._scale(q.shape[0], self.config.segment_length))
            joined, _ = self._scan_state(run, state, q.shape[0])
            assert joined is not None
            return self._normalise(joined).to(q.dtype)

    def clean(
        self, state: LayerState, energy_threshold: float, max_rank: int | None = None
    ) -> tuple[LayerState, SVDCleaningStats]:
        """Clean the committed M; z and the unfinished segment stay (see `cleaning.clean_matrix`)."""
        matrix, stats = clean_matrix(state["M"], energy_threshold, max_rank)
        return {**state, "M": matrix}, stats

    def merge(self, states: Sequence[LayerState]) -> LayerState:
        """Add states of the linear rule: the sum answers as one memory that was written with all of them."""
        return merge_layer_states(states, self.config.rule)

    def turn_of(self, segment: Tensor) -> Tensor:
        """Return the part whose turn it is after so many finished segments (modulo `parts`); shape as `segment`."""
        return segment

    def write_shares(self, keys: Tensor, segment: Tensor) -> Tensor:
        """Say how strongly each part is written; by default only the one whose turn it is. Only asked where there are
        parts.

        Args:
            keys: features `[batch, num_key_value_heads, seq, feature]`.
            segment: how many segments were finished before each token, `[batch, seq]`.

        Returns:
            Shares in [0, 1], `[batch or 1, num_key_value_heads or 1, parts, seq]`.
        """
        assert self.parts is not None
        return in_turn(self.turn_of(segment), self.parts)

    def _write_at_once(
        self, k: Tensor, v: Tensor, state: LayerState, beta: Tensor | None, decay: Tensor | None
    ) -> LayerState:
        return state if self.frozen else self._scan(None, k, v, state, beta, decay, None, at_once=True)[1]

    def _scan(
        self,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        state: LayerState,
        beta: Tensor | None,
        decay: Tensor | None,
        mask: Tensor | None,
        at_once: bool = False,
    ) -> tuple[Tensor | None, LayerState]:
        """Scan; without q only write; `at_once` takes the call as one whole segment that is committed at its end."""
        check_call(self, q, k, v, state, beta, decay, mask)
        batch, _, seq, _ = k.shape
        if seq == 0:
            return (None if q is None else q.new_zeros(batch, self.num_heads, 0, self.value_dim)), state
        mask = None if mask is None else mask.bool()
        dtype = state["M"].dtype
        with torch.autocast(k.device.type, enabled=False):
            queries = None if q is None else self._queries(q.to(dtype))
            keys, values = self._features(k.to(dtype), "key"), v.to(dtype)
            strength, fading = self._strengths(keys, beta, decay, mask)
            if self.parts is not None:
                strength, fading = self._share(keys, strength, fading, state, mask, at_once)
                keys, values = spread(keys, self.parts), spread(values, self.parts)
            if self.config.gradient == "none":
                keys, values, strength = keys.detach(), values.detach(), strength.detach()
                fading = None if fading is None else fading.detach()
            run = self._in_segments(Run(queries, keys, values, strength, fading), state, mask, at_once)
            if self._watcher is not None:
                self._watcher(run, self._running(state, batch))
            joined, new = self._scan_state(run, state, batch)
            new |= self._counted(state, mask, seq, at_once)
            out = None
            if q is not None and joined is not None:
                out = self._normalise(joined).to(q.dtype)
                out = out if mask is None else out * mask[:, None, :, None]
            return out, {name: new[name] for name in state}

    def _strengths(
        self, keys: Tensor, beta: Tensor | None, decay: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return beta and decay `[batch, heads, seq]`: given or configured, and without effect at padding."""
        constant = keys.new_ones(keys.shape[:-1])
        strength = constant * self.config.write_strength if beta is None else beta.to(keys.dtype)
        fading = None
        if self.config.rule == "gated_delta":
            fading = constant * self.config.decay if decay is None else decay.to(keys.dtype)
        if mask is not None:
            present = mask.unsqueeze(1)
            strength = strength * present
            fading = None if fading is None else torch.where(present, fading, 1.0)
        return strength, fading

    def _share(
        self,
        keys: Tensor,
        strength: Tensor,
        fading: Tensor | None,
        state: LayerState,
        mask: Tensor | None,
        at_once: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Split strength and decay between the parts: a part fades in the measure in which it is written."""
        batch, _, seq, _ = keys.shape
        finished = state["segments"].unsqueeze(1) if self.takes_turns else keys.new_zeros(1, 1, dtype=torch.int64)
        if not at_once:
            columns = self.config.scope == "batch"  # rows that share a state keep step in columns
            finished = finished + segment_of_tokens(
                None if columns else mask, state["count"], batch, seq, self.config.segment_length
            )
        shares = self.write_shares(keys, finished.expand(batch, seq)).to(keys.dtype)
        faded = None if fading is None else (fading.unsqueeze(2) ** shares).flatten(1, 2)
        return (strength.unsqueeze(2) * shares).flatten(1, 2), faded

    def _in_segments(self, run: Run, state: LayerState, mask: Tensor | None, at_once: bool) -> Run:
        """Lay the run on the grid of segments, where writes are not visible at once."""
        assert run.keys is not None
        if self.config.granularity == "token":
            return run
        batch, _, seq, _ = run.keys.shape
        # rows that share a state keep step in columns: padding takes a place, but writes nothing
        placed = None if self.config.scope == "batch" else mask
        length = seq if at_once else self.config.segment_length
        count = torch.zeros_like(state["count"]) if at_once else state["count"]
        grid = make_grid(placed, count, batch, seq, length, aligned=at_once)
        return replace(run, grid=grid, scale=self._scale(batch, length))

    def _scan_state(self, run: Run, state: LayerState, batch: int) -> tuple[Tensor | None, LayerState]:
        """Run through M and z; return the joined reads `[batch, num_heads, seq, width]`, and all but the counts."""
        reads, running = scan(run, self._running(state, batch), self.config)
        if reads is not None and self.parts is not None:
            reads = gather_reads(reads, self.num_key_value_heads, self.parts)
        return reads, self._parts_of(running)

    def _queries(self, q: Tensor) -> Tensor:
        features = self._features(q, "query")
        return features if self.parts is None else spread_queries(features, self.num_key_value_heads, self.parts)

    def _scale(self, batch: int, segment_length: int) -> float:
        shared = self.config.scope == "batch" and self.config.granularity == "segment"
        return 1.0 / (batch * segment_length) if shared else 1.0

    def _running(self, state: LayerState, batch: int) -> Running:
        """Join M and z, make every part a head, and give every row its pending writes."""
        committed = self._joined(state["M"], state.get("z"))
        if self.config.scope == "sequence":
            committed = committed.expand(batch, -1, -1, -1)
        if self.config.granularity == "token":
            return Running(committed, committed, None)
        pending = self._joined(self._waiting(state, "pending_M"), self._waiting(state, "pending_z"))
        decayed = None
        if self.config.rule == "gated_delta":
            waiting = self._waiting(state, "pending_decay", empty=1.0)
            assert waiting is not None
            decayed = self._as_heads(waiting).expand(batch, -1)
        return Running(committed, pending.expand(batch, -1, -1, -1), decayed)

    def _parts_of(self, running: Running) -> LayerState:
        """Undo `_running`."""
        matrix, z = split_state(running.committed, self.config)
        new: dict[str, Tensor | None] = {"M": matrix, "z": z}
        if self.config.granularity == "segment":
            new["pending_M"], new["pending_z"] = split_state(running.pending, self.config)
            new["pending_decay"] = running.decayed
        return {name: self._settled(name, x).contiguous() for name, x in new.items() if x is not None}

    def _waiting(self, state: LayerState, name: str, empty: float = 0.0) -> Tensor | None:
        """Return a pending tensor with room for all parts: where they take turns, it belongs to the one at turn."""
        pending = state.get(name)
        if pending is None or not self.takes_turns:
            return pending
        assert self.parts is not None
        at_turn = in_turn(self.turn_of(state["segments"]).unsqueeze(1), self.parts).squeeze(-1)
        return torch.where(at_turn[(...,) + (None,) * (pending.dim() - 2)], pending.unsqueeze(2), empty)

    def _settled(self, name: str, x: Tensor) -> Tensor:
        """Undo `_as_heads` and, for pending tensors, `_waiting`."""
        parts = self._as_parts(x)
        if not (self.takes_turns and name.startswith("pending")):
            return parts
        return parts.prod(dim=2) if name == "pending_decay" else parts.sum(dim=2)

    def _joined(self, matrix: Tensor | None, z: Tensor | None) -> Tensor:
        assert matrix is not None
        return join_state(self._as_heads(matrix), None if z is None else self._as_heads(z))

    def _as_heads(self, x: Tensor) -> Tensor:
        return x if self.parts is None else x.flatten(1, 2)

    def _as_parts(self, x: Tensor) -> Tensor:
        return x if self.parts is None else x.unflatten(1, (self.num_key_value_heads, self.parts))

    def _counted(self, state: LayerState, mask: Tensor | None, seq: int, at_once: bool) -> LayerState:
        """Count tokens and finished segments."""
        seen = seq if mask is None or self.config.scope == "batch" else mask.sum(dim=1)
        counts = {"count": state["count"] + seen}
        if self.takes_turns:
            length = self.config.segment_length
            done = (state["count"].remainder(length) + seen).div(length, rounding_mode="floor")
            counts["segments"] = state["segments"] + (1 if at_once else done)
        return counts
