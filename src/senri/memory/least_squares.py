"""LeastSquaresMemory: the tokens of a segment are written together, so that none of them is written over by the next.

The delta rule corrects one token after the other. Where keys of one sentence have much in common, as they must to be
found by what the sentence is about, a query that has just this in common with them reads mostly the last ones: each
write takes away what it shares with those before. Written together, what is shared is shared out between all of them,
and a query reads what sets its own key apart. This is the affine projection algorithm (Ozeki & Umeda 1984, equation 6),
of which the delta rule (normalised least mean squares) is the case of one token.

Keys of earlier segments are written over all the same, unless what was written is known. With a sketch of them, the
directions in which most was written, a write stays out of their way: recursive least squares (Plackett 1950), whose
covariance is a matrix of the few largest singular vectors instead of a whole one.
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
from senri.memory.segment_places import SegmentPlaces
from senri.memory.typed import check_at_least
from senri.memory.watching import WatchedWrites

_LEAST = 1e-3
"""Strengths are at most 1 less this: two equal keys with different values cannot both be met exactly."""


@dataclass
class LeastSquaresOptions:
    """Options of `LeastSquaresMemory`.

    Args:
        ridge: how much a query is off the key that it is meant for, as a share of a key's square. Keys are told apart
            only as far as such queries can tell them apart; 0 for queries that are keys.
        sketch: directions of keys that are remembered of all segments before; 0 for none.
    """

    ridge: float = 0.0
    sketch: int = 0

    def __post_init__(self) -> None:
        check_at_least("memory.options", {"sketch": self.sketch}, 0, " (0 is off)")
        if self.ridge < 0:
            raise SenriError(f"memory.options.ridge is {self.ridge}, but it must be 0 or above.")


_NEEDED = {
    "rule": "delta",
    "granularity": "segment",
    "normaliser": "rmsnorm",
    "scope": "sequence",
    "order": "retrieve_then_update",
}


@dataclass(frozen=True)
class Held:
    """What writes go by.

    Attributes:
        matrix: M, `[batch, heads, feature, value_dim]`.
        sketch: S, `[batch, heads, directions, feature]`; None for none.
    """

    matrix: Tensor
    sketch: Tensor | None


@dataclass(frozen=True)
class Change:
    """How tokens that are written together change what is held.

    Attributes:
        directions: in which each is written, its key less what stands there, `[batch, heads, tokens, feature]`.
        values: what it adds there, `[batch, heads, tokens, value_dim]`.
        products: of the sketch's directions and the keys with each other,
            `[batch, heads, directions + tokens, directions + tokens]`; None without a sketch.
    """

    directions: Tensor
    values: Tensor
    products: Tensor | None


class LeastSquaresMemory(WatchedWrites, CalibratedMemory):
    """Per head one matrix M, changed at the end of each segment of `segment_length` tokens.

    With the segment's keys K and values V (a row a token), strengths b and the ridge r, the new M is the one that is
    least

        |M' - M|^2 + |S (M' - M)|^2 + sum_t |v_t - k_t M'|^2 / d_t,  d_t = (1 - b_t) / b_t + r,

    which is M + P K^T (K P K^T + diag(d))^-1 (V - K M) with P = (I + S^T S)^-1. A token alone is changed by
    b / (1 + r b), without a ridge by b, as under the delta rule. S is empty, or with the option `sketch` it stands for
    all that was written before: S^T S is the sum of k_t^T k_t / d_t, or of that the largest so many eigenvectors. As
    long as these are all there are, M is what all segments written together give. Gradients do not go through S. A
    segment none of whose strengths is above what M's numbers are rounded by is not written: it costs next to nothing.

    State tensors (float32; count int64), fixed in size: `M` `[batch, num_key_value_heads, feature, value_dim]`, `count`
    `[batch]`, the tokens seen, `sketch` `[batch, num_key_value_heads, directions, feature]` where there is one, and of
    the unfinished segment `pending_k`, `pending_v` and `pending_beta`
    `[batch, num_key_value_heads, segment_length - 1, ...]`.

    Who watches its writes is told of the segments that a call finishes, and of what is `Held` before.
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
        for name, wanted in _NEEDED.items():
            if getattr(self.config, name) != wanted:
                raise SenriError(
                    f"memory.{name} is {getattr(self.config, name)!r}, but a memory of type 'least_squares' needs "
                    f"{wanted!r}."
                )

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the empty state; reading it gives zeros."""
        room = (batch_size, self.num_key_value_heads)
        waiting = (*room, self.config.segment_length - 1)
        directions = self.options.sketch
        sketch = {"sketch": torch.zeros(*room, directions, self.feature_width, device=device)} if directions else {}
        return {
            "M": torch.zeros(*room, self.feature_width, self.value_dim, device=device),
            "count": torch.zeros(batch_size, dtype=torch.int64, device=device),
            **sketch,
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

    def _write_at_once(
        self, k: Tensor, v: Tensor, state: LayerState, beta: Tensor | None, decay: Tensor | None
    ) -> LayerState:
        if self.frozen:
            return state
        check_call(self, None, k, v, state, beta, decay, None)
        dtype = state["M"].dtype
        keys = self._features(k.to(dtype), "key")
        held = self.written(_held(state), keys, v.to(dtype), self._strength(keys, beta, None))
        return {**state, **_as_state(held), "count": state["count"] + k.shape[2]}

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
            places = SegmentPlaces(state["count"].expand(batch), mask, batch, seq, length)
            waiting = (state["pending_k"], state["pending_v"], state["pending_beta"].unsqueeze(-1))
            laid = [
                places.lay(x, past.expand(batch, -1, -1, -1))
                for x, past in zip((keys, values, strength.unsqueeze(-1)), waiting, strict=True)
            ]
            # Split, not sliced: the backward of every slice would fill a tensor of all tokens.
            asked = None if q is None else places.lay(self._features(q.to(dtype), "query"), None).split(length, dim=2)
            held, reads = _held(state, batch), []
            if self._watcher is not None:
                finished = int(places.full.any(0).sum()) * length
                keys, values, strength = (x[:, :, :finished] for x in laid)
                self._watcher(Run(None, keys, values, strength.squeeze(-1)), held)
            rows_written = places.rows_written(laid[2])
            segments = zip(*(x.split(length, dim=2) for x in laid), strict=True)
            for number, (full, count, (key, value, beta_here)) in enumerate(
                zip(places.full.unbind(1), rows_written, segments, strict=True)
            ):
                if asked is not None:
                    reads.append(product(asked[number], held.matrix))
                if count != 0:
                    base = Held(held.matrix.detach(), held.sketch) if self.config.gradient == "segment" else held
                    written = self.written(base, key, value, beta_here.squeeze(-1))
                    held = written if count == batch else _chosen(full, written, held)
            out = None
            if reads:
                out = self._normalise(places.collect(torch.cat(reads, dim=2))).to(q.dtype if q is not None else dtype)
                out = out if mask is None else out * mask[:, None, :, None]
            pending_k, pending_v, pending_beta = (places.rest(x) for x in laid)
            new = {
                **_as_state(held),
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

    def written(self, held: Held, keys: Tensor, values: Tensor, strength: Tensor) -> Held:
        """Return what is held after some tokens were written together.

        Args:
            held: before.
            keys: features `[batch, heads, tokens, feature]`.
            values: `[batch, heads, tokens, value_dim]`.
            strength: `[batch, heads, tokens]`, in [0, 1].
        """
        return self.changed(held, keys, strength, self.change(held, keys, values, strength))

    def changed(self, held: Held, keys: Tensor, strength: Tensor, change: Change) -> Held:
        """Return what is held after what `change` returned was added; arguments as in `written`."""
        matrix, turned = held.matrix.flatten(0, 1), change.directions.transpose(-1, -2).flatten(0, 1)
        matrix = torch.baddbmm(matrix, turned, change.values.flatten(0, 1))  # one pass less than a product and a sum
        return Held(matrix.view_as(held.matrix), self._sketched(held.sketch, keys, strength, change.products))

    def change(self, held: Held, keys: Tensor, values: Tensor, strength: Tensor) -> Change:
        """Return how tokens change what is held; arguments as in `written`.

        Multiplied by b, the equations have a solution where a strength is 0 as well: nothing.
        """
        directions, products = keys, None
        alike = keys @ keys.transpose(-1, -2)
        if held.sketch is not None:
            sketch = held.sketch
            kept, met = sketch @ sketch.transpose(-1, -2), sketch @ keys.transpose(-1, -2)
            known = torch.eye(sketch.shape[-2], dtype=sketch.dtype, device=sketch.device) + kept
            shares = torch.linalg.solve(known, met).transpose(-1, -2)
            directions = keys - shares @ sketch
            products = torch.cat([torch.cat([kept, met], -1), torch.cat([met.transpose(-1, -2), alike], -1)], -2)
            alike = alike - shares @ met
        strength, alone = (x.unsqueeze(-1) for x in self._bounded(strength))
        shared = strength * alike + torch.diag_embed(alone.squeeze(-1))
        changes: Tensor = torch.linalg.solve(shared, strength * (values - keys @ held.matrix))
        return Change(directions, changes, products)

    def _bounded(self, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Return strengths b below 1, and b d of each, 1 - b + r b (see the class)."""
        strength = strength.clamp(max=1 - _LEAST)
        return strength, 1 - strength + self.options.ridge * strength

    @torch.no_grad()
    def _sketched(
        self, sketch: Tensor | None, keys: Tensor, strength: Tensor, products: Tensor | None
    ) -> Tensor | None:
        """Return the sketch after some tokens were written; products as in `Change`."""
        if sketch is None or products is None:
            return None
        strength, alone = self._bounded(strength)
        weights = torch.cat([torch.ones_like(sketch[..., 0]), (strength / alone).sqrt()], dim=-1)
        products = weights.unsqueeze(-1) * products * weights.unsqueeze(-2)
        _, vectors = torch.linalg.eigh(products)  # ascending
        known, new = (vectors[..., -sketch.shape[-2] :] * weights.unsqueeze(-1)).split(
            [sketch.shape[-2], keys.shape[-2]], dim=-2
        )
        largest = known.transpose(-1, -2) @ sketch + new.transpose(-1, -2) @ keys
        return torch.where(largest.sum(-1, keepdim=True) < 0, -largest, largest)  # a sign says nothing, but differs


def _held(state: LayerState, batch: int | None = None) -> Held:
    """Return what a state holds, of so many rows."""
    rows = state["M"].shape[0] if batch is None else batch
    matrix, sketch = state["M"].expand(rows, -1, -1, -1), state.get("sketch")
    return Held(matrix, None if sketch is None else sketch.expand(rows, -1, -1, -1))


def _as_state(held: Held) -> LayerState:
    state = {"M": held.matrix.contiguous()}
    return state if held.sketch is None else {**state, "sketch": held.sketch.contiguous()}


def _chosen(rows: Tensor, new: Held, old: Held) -> Held:
    """Return what is new in some rows, `[batch]` bool, and what is old in the others."""
    rows = rows.view(-1, 1, 1, 1)
    sketch = None
    if new.sketch is not None and old.sketch is not None:
        sketch = torch.where(rows, new.sketch, old.sketch)
    return Held(torch.where(rows, new.matrix, old.matrix), sketch)
