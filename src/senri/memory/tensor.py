"""TensorMemory: per head one matrix M of outer products phi(k) v^T, and the sum z of the features written."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.checks import check_call, check_rows
from senri.memory.cleaning import SVDCleaningStats, clean_matrix
from senri.memory.config import MemoryConfig
from senri.memory.features import apply_feature_map, feature_width
from senri.memory.held_state import HeldState
from senri.memory.merging import merge_layer_states
from senri.memory.reading import join_state, normalise, product, split_state
from senri.memory.segment_scan import Running, make_grid, segment_scan
from senri.memory.token_scan import token_scan


class TensorMemory(HeldState):
    """The associative matrix memory of Infini-attention (Munkhdalai et al. 2024) with all its knobs.

    State tensors (float32; `count` int64), fixed in size:

    - `M` `[batch, num_key_value_heads, feature, value_dim]`, with the `denominator` normaliser also `z`
      `[batch, num_key_value_heads, feature]`;
    - `count` `[batch]`: tokens seen;
    - granularity `segment`: `pending_M`, `pending_z`, the writes of the unfinished segment, and for `gated_delta`
      `pending_decay` `[batch, num_key_value_heads]`, the product of its decays.

    Scope `batch`: M, z and count have one row for all; the pending writes stay per row, because a row reads its own.

    Parameters: `norm_weight` `[num_heads, value_dim]` with the `rmsnorm` normaliser; with calibration `whiten`
    `key_mean`, `key_whitening`, `query_mean`, `query_whitening` (per head, before phi; the identity at the start).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_key_value_heads: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        config: MemoryConfig | None = None,
        **knobs: Any,
    ) -> None:
        """Build an empty memory.

        Args:
            hidden_size: width of the model; only gives the default of `key_dim`, hidden_size / num_heads.
            num_heads: query heads.
            num_key_value_heads: heads of keys, values and state; default `num_heads`.
            key_dim: width of a key; default hidden_size / num_heads.
            value_dim: width of a value; default `key_dim`.
            config: all knobs; default `MemoryConfig()`.
            **knobs: single fields of `MemoryConfig` that replace those of `config`.

        Raises:
            SenriError: an unknown knob, or sizes that do not fit together.
        """
        super().__init__()
        values = (MemoryConfig() if config is None else config).to_dict()
        self.config = MemoryConfig.from_dict({**values, **knobs})
        self.num_heads = num_heads
        self.num_key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if key_dim is None and (num_heads < 1 or hidden_size % num_heads):
            raise SenriError(f"hidden_size {hidden_size} cannot be split between num_heads {num_heads}: give key_dim.")
        self.key_dim = hidden_size // num_heads if key_dim is None else key_dim
        self.value_dim = self.key_dim if value_dim is None else value_dim
        sizes = ("num_heads", "num_key_value_heads", "key_dim", "value_dim")
        for name in sizes:
            if getattr(self, name) < 1:
                raise SenriError(f"{name} of the memory is {getattr(self, name)}, but it must be at least 1.")
        if num_heads % self.num_key_value_heads:
            raise SenriError(
                f"num_heads {num_heads} of the memory is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}: every key/value head serves the same number of query heads."
            )
        if self.config.normaliser == "rmsnorm":
            self.norm_weight = nn.Parameter(torch.empty(num_heads, self.value_dim))
        if self.config.calibration == "whiten":
            for side, heads in (("key", self.num_key_value_heads), ("query", num_heads)):
                self.register_parameter(f"{side}_mean", nn.Parameter(torch.empty(heads, self.key_dim)))
                whitening = nn.Parameter(torch.empty(heads, self.key_dim, self.key_dim))
                self.register_parameter(f"{side}_whitening", whitening)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the norm to 1 and the calibration to the identity."""
        if self.config.normaliser == "rmsnorm":
            nn.init.ones_(self.norm_weight)
        if self.config.calibration == "whiten":
            for side in ("key", "query"):
                nn.init.zeros_(self.get_parameter(f"{side}_mean"))
                whitening = self.get_parameter(f"{side}_whitening")
                whitening.copy_(torch.eye(self.key_dim, device=whitening.device).expand_as(whitening))

    @torch.no_grad()
    def set_calibration(
        self,
        key_mean: Tensor,
        key_whitening: Tensor,
        query_mean: Tensor | None = None,
        query_whitening: Tensor | None = None,
    ) -> None:
        """Set x -> (x - mean) @ whitening, applied to keys and queries before the feature map.

        Args:
            key_mean: `[num_key_value_heads, key_dim]`.
            key_whitening: `[num_key_value_heads, key_dim, key_dim]`.
            query_mean: `[num_heads, key_dim]`; None takes each query head's key head.
            query_whitening: `[num_heads, key_dim, key_dim]`; None likewise.

        Raises:
            SenriError: `calibration` is not `whiten`, or a shape does not fit.
        """
        if self.config.calibration != "whiten":
            raise SenriError(f"memory.calibration is {self.config.calibration!r}: set it to 'whiten' to calibrate.")
        group = self.num_heads // self.num_key_value_heads
        given = {
            "key_mean": key_mean,
            "key_whitening": key_whitening,
            "query_mean": key_mean.repeat_interleave(group, dim=0) if query_mean is None else query_mean,
            "query_whitening": (
                key_whitening.repeat_interleave(group, dim=0) if query_whitening is None else query_whitening
            ),
        }
        for name, value in given.items():
            parameter = self.get_parameter(name)
            if value.shape != parameter.shape:
                raise SenriError(f"{name} has shape {tuple(value.shape)}, but it must be {tuple(parameter.shape)}.")
        for name, value in given.items():
            self.get_parameter(name).copy_(value)

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the empty state; reading it gives zeros."""
        shared = 1 if self.config.scope == "batch" else batch_size
        heads, width = self.num_key_value_heads, feature_width(self.key_dim, self.config)
        segments, has_z = self.config.granularity == "segment", self.config.normaliser == "denominator"
        state = {
            "M": torch.zeros(shared, heads, width, self.value_dim, device=device),
            "count": torch.zeros(shared, dtype=torch.int64, device=device),
        }
        if has_z:
            state["z"] = torch.zeros(shared, heads, width, device=device)
        if segments:
            state["pending_M"] = torch.zeros(batch_size, heads, width, self.value_dim, device=device)
        if segments and has_z:
            state["pending_z"] = torch.zeros(batch_size, heads, width, device=device)
        if segments and self.config.rule == "gated_delta":
            state["pending_decay"] = torch.ones(batch_size, heads, device=device)
        return state

    def read(self, q: Tensor, state: LayerState) -> Tensor:
        """Read every query from the same state: `[batch, num_heads, seq, value_dim]`.

        With `update_then_retrieve` a read also sees the unfinished segment's writes.
        """
        check_rows(state, q.shape[0])
        with torch.autocast(q.device.type, enabled=False):
            running = self._running(state, q.shape[0])
            visible = running.committed
            if self.config.granularity == "segment" and self.config.order == "update_then_retrieve":
                if running.decayed is not None:
                    visible = visible * running.decayed[..., None, None]
                visible = visible + running.pending * self._scale(q.shape[0], self.config.segment_length)
            read = product(self._features(q.to(visible.dtype), "query"), visible)
            return self._normalise(read).to(q.dtype)

    def write(
        self,
        k: Tensor,
        v: Tensor,
        state: LayerState,
        beta: Tensor | None = None,
        decay: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> LayerState:
        """Write tokens in order and return the new state; equals the state that `scan` returns."""
        return self._run(None, k, v, state, beta, decay, mask)[1]

    def scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: LayerState,
        beta: Tensor | None = None,
        decay: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, LayerState]:
        """Read and write a run of tokens causally. Outputs of padding are zeros. See `Memory.scan`."""
        out, new_state = self._run(q, k, v, state, beta, decay, mask)
        assert out is not None
        return out, new_state

    def clean(
        self, state: LayerState, energy_threshold: float, max_rank: int | None = None
    ) -> tuple[LayerState, SVDCleaningStats]:
        """Clean the committed M; z and the unfinished segment stay (see `cleaning.clean_matrix`)."""
        matrix, stats = clean_matrix(state["M"], energy_threshold, max_rank)
        return {**state, "M": matrix}, stats

    def merge(self, states: Sequence[LayerState]) -> LayerState:
        """Add states of the linear rule: the sum answers as one memory that was written with all of them."""
        return merge_layer_states(states, self.config.rule)

    def extra_repr(self) -> str:
        """Show sizes and the knobs that decide the state."""
        config = self.config
        return (
            f"num_heads={self.num_heads}, num_key_value_heads={self.num_key_value_heads}, key_dim={self.key_dim}, "
            f"value_dim={self.value_dim}, rule={config.rule}, feature_map={config.feature_map}, "
            f"normaliser={config.normaliser}, granularity={config.granularity}"
        )

    def _write_at_once(
        self, k: Tensor, v: Tensor, state: LayerState, beta: Tensor | None, decay: Tensor | None
    ) -> LayerState:
        return self._run(None, k, v, state, beta, decay, None, at_once=True)[1]

    def _run(
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
        batch, heads, seq, _ = k.shape
        if seq == 0:
            return (None if q is None else q.new_zeros(batch, self.num_heads, 0, self.value_dim)), state
        dtype = state["M"].dtype
        with torch.autocast(k.device.type, enabled=False):
            queries = None if q is None else self._features(q.to(dtype), "query")
            keys, values = self._features(k.to(dtype), "key"), v.to(dtype)
            constant = keys.new_ones(batch, heads, seq)
            strength = constant * self.config.write_strength if beta is None else beta.to(dtype)
            fading = None
            if self.config.rule == "gated_delta":
                fading = constant * self.config.decay if decay is None else decay.to(dtype)
            if mask is not None:
                present = mask.bool().unsqueeze(1)
                strength = strength * present
                fading = None if fading is None else torch.where(present, fading, 1.0)
            if self.config.gradient == "none":
                keys, values, strength = keys.detach(), values.detach(), strength.detach()
                fading = None if fading is None else fading.detach()
            running = self._running(state, batch)
            if self.config.granularity == "token":
                joined, written = token_scan(
                    keys if queries is None else queries, keys, values, running.committed, strength, fading, self.config
                )
                running = replace(running, committed=written)
                read = None if queries is None else joined
            else:
                # rows that share a state keep step in columns: padding takes a place, but writes nothing
                placed = None if mask is None or self.config.scope == "batch" else mask.bool()
                length = seq if at_once else self.config.segment_length
                count = torch.zeros_like(state["count"]) if at_once else state["count"]
                grid = make_grid(placed, count, batch, seq, length, aligned=at_once)
                scale = self._scale(batch, length)
                read, running = segment_scan(queries, keys, values, running, strength, fading, grid, scale, self.config)
            out = None
            if q is not None and read is not None:
                out = self._normalise(read).to(q.dtype)
                if mask is not None:
                    out = out * mask.bool()[:, None, :, None]
            return out, self._new_state(running, state, mask, seq)

    def _features(self, x: Tensor, side: str) -> Tensor:
        """Calibrate (where configured) and apply phi; `side` is "key" or "query"."""
        if self.config.calibration == "whiten":
            mean = self.get_parameter(f"{side}_mean").to(x.dtype)
            x = (x - mean.unsqueeze(1)) @ self.get_parameter(f"{side}_whitening").to(x.dtype)
        return apply_feature_map(x, self.config)

    def _normalise(self, read: Tensor) -> Tensor:
        weight = self.norm_weight if self.config.normaliser == "rmsnorm" else None
        return normalise(read, weight, self.config)

    def _scale(self, batch: int, segment_length: int) -> float:
        return 1.0 / (batch * segment_length) if self.config.scope == "batch" else 1.0

    def _running(self, state: LayerState, batch: int) -> Running:
        """Join M and z, and give every row its pending writes."""
        committed = join_state(state["M"], state.get("z"))
        if self.config.scope == "sequence":
            committed = committed.expand(batch, -1, -1, -1)
        if self.config.granularity == "token":
            return Running(committed, committed, None)
        pending = join_state(state["pending_M"], state.get("pending_z")).expand(batch, -1, -1, -1)
        decayed = state["pending_decay"].expand(batch, -1) if self.config.rule == "gated_delta" else None
        return Running(committed, pending, decayed)

    def _new_state(self, running: Running, state: LayerState, mask: Tensor | None, seq: int) -> LayerState:
        """Take M, z and the pending writes apart again and count the tokens."""
        seen = seq if mask is None or self.config.scope == "batch" else mask.sum(dim=1)
        new: LayerState = {"count": state["count"] + seen}
        parts = [("M", "z", running.committed)]
        if self.config.granularity == "segment":
            parts.append(("pending_M", "pending_z", running.pending))
        for matrix_name, z_name, joined in parts:
            matrix, z = split_state(joined, self.config)
            new[matrix_name] = matrix.contiguous()
            if z is not None:
                new[z_name] = z.contiguous()
        if running.decayed is not None:
            new["pending_decay"] = running.decayed
        return {name: new[name] for name in state}
