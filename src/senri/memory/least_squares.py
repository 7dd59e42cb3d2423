"""LeastSquaresMemory: the tokens of a segment are written together, so that none of them is written over by the next.

The delta rule corrects one token after the other. Where keys of one sentence have much in common, as they must to be
found by what the sentence is about, a query that has just this in common with them reads mostly the last ones: each
write takes away what it shares with those before. Written together, what is shared is shared out between all of them,
and a query reads what sets its own key apart. This is the affine projection algorithm (Ozeki & Umeda 1984, equation 6),
of which the delta rule (normalised least mean squares) is the case of one token.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.calibrated import CalibratedMemory
from senri.memory.checks import check_call, check_rows
from senri.memory.cleaning import SVDCleaningStats, clean_matrix
from senri.memory.reading import product
from senri.memory.scan import Run
from senri.memory.segment_scan import Running
from senri.memory.watching import WatchedWrites

_LEAST = 1e-3
"""Strengths are at most 1 less this: two equal keys with different values cannot both be met exactly."""


@dataclass
class LeastSquaresOptions:
    """Options of `LeastSquaresMemory`.

    Args:
        ridge: how much a query is off the key that it is meant for, as a share of a key's square. Keys are told apart
            only as far as such queries can tell them apart; 0 for queries that are keys.
    """

    ridge: float = 0.0

    def __post_init__(self) -> None:
        if self.ridge < 0:
            raise SenriError(f"memory.options.ridge is {self.ridge}, but it must be 0 or above.")


_NEEDED = {"rule": "delta", "granularity": "segment", "normaliser": "rmsnorm", "scope": "sequence"}
_ORDER = {"order": "retrieve_then_update"}


class LeastSquaresMemory(WatchedWrites, CalibratedMemory):
    """Per head one matrix M, changed at the end of each segment of `segment_length` tokens.

    With the segment's keys K and values V (a row a token), strengths b and the ridge r, the new M is the one that is
    least

        |M' - M|^2 + sum_t |v_t - k_t M'|^2 / ((1 - b_t) / b_t + r),

    which is M + K^T (K K^T + diag((1 - b) / b + r))^-1 (V - K M). A token alone is changed by b / (1 + r b), without a
    ridge by b, as under the delta rule.

    State tensors (float32; count int64), fixed in size: `M` `[batch, num_key_value_heads, feature, value_dim]`, `count`
    `[batch]`, the tokens seen, and of the unfinished segment `pending_k`, `pending_v` and `pending_beta`
    `[batch, num_key_value_heads, segment_length - 1, ...]`.

    Who watches its writes is told of the segments that a call finishes.
    """

    Options = LeastSquaresOptions
    options: LeastSquaresOptions
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "rule": "delta",
        "feature_map": "l2",
        "normaliser": "rmsnorm",
        "segment_length": 64,
    }
    stable_in_segments = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, wanted in {**_NEEDED, **_ORDER}.items():
            if getattr(self.config, name) != wanted:
                raise SenriError(
                    f"memory.{name} is {getattr(self.config, name)!r}, but a memory of type 'least_squares' needs "
                    f"{wanted!r}."
                )

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the empty state; reading it gives zeros."""
        room = (batch_size, self.num_key_value_heads)
        waiting = (*room, self.config.segment_length - 1)
        return {
            "M": torch.zeros(*room, self.feature_width, self.value_dim, device=device),
            "count": torch.zeros(batch_size, dtype=torch.int64, device=device),
            "pending_k": torch.zeros(*waiting, self.feature_width, device=device),
            "pending_v": torch.zeros(*waiting, self.value_dim, device=device),
            "pending_beta": torch.zeros(*waiting, device=device),
        }

    def read(self, q: Tensor, state: LayerState) -> Tensor:
        """Read every query from the same state: `[batch, num_heads, seq, value_dim]`."""
        check_rows(state, q.shape[0])
        with torch.autocast(q.device.type, enabled=False):
            queries = self._features(q.to(state["M"].dtype), "query")
            return self._normalise(product(queries, state["M"])).to(q.dtype)

    def clean(
        self, state: LayerState, energy_threshold: float, max_rank: int | None = None
    ) -> tuple[LayerState, SVDCleaningStats]:
        """Clean M; the unfinished segment stays (see `cleaning.clean_matrix`)."""
        matrix, stats = clean_matrix(state["M"], energy_threshold, max_rank)
        return {**state, "M": matrix}, stats

    def finish(self, state: LayerState) -> LayerState:
        """Write the unfinished segment as it is; the next token begins a new one."""
        length = self.config.segment_length
        empty = {name: torch.zeros_like(state[name]) for name in ("pending_k", "pending_v", "pending_beta")}
        matrix = self.written(state["M"], state["pending_k"], state["pending_v"], state["pending_beta"])
        return {**state, "M": matrix, "count": -(-state["count"] // length) * length, **empty}

    def _write_at_once(
        self, k: Tensor, v: Tensor, state: LayerState, beta: Tensor | None, decay: Tensor | None
    ) -> LayerState:
        if self.frozen:
            return state
        check_call(self, None, k, v, state, beta, decay, None)
        dtype = state["M"].dtype
        keys = self._features(k.to(dtype), "key")
        matrix = self.written(state["M"], keys, v.to(dtype), self._strength(keys, beta, None))
        return {**state, "M": matrix, "count": state["count"] + k.shape[2]}

    def _scan(
        self,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        state: LayerState,
        beta: Tensor | None,
        decay: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor | None, LayerState]:
        check_call(self, q, k, v, state, beta, decay, mask)
        batch, _, seq, _ = k.shape
        if seq == 0:
            return (None if q is None else q.new_zeros(batch, self.num_heads, 0, self.value_dim)), state
        mask = None if mask is None else mask.bool()
        dtype, length = state["M"].dtype, self.config.segment_length
        with torch.autocast(k.device.type, enabled=False):
            keys, values = self._features(k.to(dtype), "key"), v.to(dtype)
            strength = self._strength(keys, beta, mask)
            if self.config.gradient == "none":
                keys, values, strength = keys.detach(), values.detach(), strength.detach()
            places = _Places(state["count"].expand(batch), mask, batch, seq, length)
            waiting = (state["pending_k"], state["pending_v"], state["pending_beta"].unsqueeze(-1))
            laid = [
                places.lay(x, past.expand(batch, -1, -1, -1))
                for x, past in zip((keys, values, strength.unsqueeze(-1)), waiting, strict=True)
            ]
            asked = None if q is None else places.lay(self._features(q.to(dtype), "query"), None)
            matrix, reads = state["M"].expand(batch, -1, -1, -1), []
            if self._watcher is not None:
                finished = int(places.full.any(0).sum()) * length
                keys, values, strength = (x[:, :, :finished] for x in laid)
                self._watcher(Run(None, keys, values, strength.squeeze(-1)), Running(matrix, matrix, None))
            for segment, full in enumerate(places.full.unbind(1)):
                here = slice(segment * length, (segment + 1) * length)
                if asked is not None:
                    reads.append(product(asked[:, :, here], matrix))
                if torch.compiler.is_compiling() or bool(full.any()):
                    base = matrix.detach() if self.config.gradient == "segment" else matrix
                    key, value, beta_here = (x[:, :, here] for x in laid)
                    changed = self.written(base, key, value, beta_here.squeeze(-1))
                    matrix = torch.where(full.view(-1, 1, 1, 1), changed, matrix)
            out = None
            if reads:
                out = self._normalise(places.collect(torch.cat(reads, dim=2))).to(q.dtype if q is not None else dtype)
                out = out if mask is None else out * mask[:, None, :, None]
            pending_k, pending_v, pending_beta = (places.rest(x) for x in laid)
            new = {
                "M": matrix.contiguous(),
                "count": state["count"].expand(batch) + (seq if mask is None else mask.sum(dim=1)),
                "pending_k": pending_k,
                "pending_v": pending_v,
                "pending_beta": pending_beta.squeeze(-1),
            }
            return out, {name: new[name] for name in state}

    def _strength(self, keys: Tensor, beta: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return beta `[batch, heads, seq]`, given or configured; 0 at padding."""
        given = keys.new_full(keys.shape[:-1], self.config.write_strength) if beta is None else beta.to(keys.dtype)
        return given if mask is None else given * mask.unsqueeze(1)

    def written(self, matrix: Tensor, keys: Tensor, values: Tensor, strength: Tensor) -> Tensor:
        """Return the matrix after some tokens were written together.

        Args:
            matrix: `[batch, heads, feature, value_dim]`.
            keys: features `[batch, heads, tokens, feature]`.
            values: `[batch, heads, tokens, value_dim]`.
            strength: `[batch, heads, tokens]`, in [0, 1].
        """
        return matrix + keys.transpose(-1, -2) @ self.changes(matrix, keys, values, strength)

    def changes(self, matrix: Tensor, keys: Tensor, values: Tensor, strength: Tensor) -> Tensor:
        """Return what each token adds to the matrix at its key when they are written together.

        Multiplied by b, the equations have a solution where a strength is 0 as well: nothing.

        Args:
            matrix: as in `written`, and so are the others.

        Returns:
            `[batch, heads, tokens, value_dim]`.
        """
        strength = strength.clamp(max=1 - _LEAST).unsqueeze(-1)
        alone = (1 - strength + self.options.ridge * strength).squeeze(-1)
        shared = strength * (keys @ keys.transpose(-1, -2)) + torch.diag_embed(alone)
        solved: Tensor = torch.linalg.solve(shared, strength * (values - keys @ matrix))
        return solved


class _Places:
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
