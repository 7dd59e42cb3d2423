"""CalibratedMemory: sizes and knobs of a memory, and its way from keys and queries to features and back to outputs."""

from typing import Any

import torch
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.checks import check_sizes
from senri.memory.config import MemoryConfig
from senri.memory.features import apply_feature_map, feature_width
from senri.memory.held_state import HeldState
from senri.memory.reading import normalise
from senri.memory.typed import from_mapping


class CalibratedMemory(HeldState):
    """Resolves knobs and options, holds the calibration and the norm; says nothing about the state.

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
            config: all knobs; default `MemoryConfig()` with the class's `DEFAULTS`.
            **knobs: single fields of `MemoryConfig`, or of the class's `Options`, that replace those of `config`.

        Raises:
            SenriError: an unknown knob, or sizes that do not fit together.
        """
        super().__init__()
        self.config, self.options = self._resolve(config, knobs)
        self.num_heads = num_heads
        self.num_key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if key_dim is None and (num_heads < 1 or hidden_size % num_heads):
            raise SenriError(f"hidden_size {hidden_size} cannot be split between num_heads {num_heads}: give key_dim.")
        self.key_dim = hidden_size // num_heads if key_dim is None else key_dim
        self.value_dim = self.key_dim if value_dim is None else value_dim
        check_sizes(self)
        self.feature_width = feature_width(self.key_dim, self.config)
        self.make_parameters()
        self.reset_parameters()

    def make_parameters(self) -> None:
        """Create the parameters, not yet set. A subclass adds its own."""
        if self.config.normaliser == "rmsnorm":
            self.norm_weight = nn.Parameter(torch.empty(self.num_heads, self.value_dim))
        if self.config.calibration == "whiten":
            for side, heads in (("key", self.num_key_value_heads), ("query", self.num_heads)):
                self.register_parameter(f"{side}_mean", nn.Parameter(torch.empty(heads, self.key_dim)))
                whitening = nn.Parameter(torch.empty(heads, self.key_dim, self.key_dim))
                self.register_parameter(f"{side}_whitening", whitening)

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

    def extra_repr(self) -> str:
        """Show sizes and the knobs that decide the state."""
        config = self.config
        return (
            f"num_heads={self.num_heads}, num_key_value_heads={self.num_key_value_heads}, key_dim={self.key_dim}, "
            f"value_dim={self.value_dim}, rule={config.rule}, feature_map={config.feature_map}, "
            f"normaliser={config.normaliser}, granularity={config.granularity}, {self.options}"
        )

    def _resolve(self, config: MemoryConfig | None, knobs: dict[str, Any]) -> tuple[MemoryConfig, Any]:
        """Put knobs over the configuration; those that only this memory has are its options."""
        values = {**MemoryConfig().to_dict(), **self.DEFAULTS} if config is None else config.to_dict()
        own = {name: value for name, value in knobs.items() if name in self.Options.__dataclass_fields__}
        values["options"] = {**values["options"], **own}
        resolved = MemoryConfig.from_dict({**values, **{name: knobs[name] for name in knobs if name not in own}})
        return resolved, from_mapping(self.Options, resolved.options, "memory.options")

    def _features(self, x: Tensor, side: str) -> Tensor:
        """Calibrate (where configured) and apply phi; `side` is "key" or "query"."""
        return apply_feature_map(self._calibrated(x, side), self.config)

    def _calibrated(self, x: Tensor, side: str) -> Tensor:
        if self.config.calibration != "whiten":
            return x
        mean = self.get_parameter(f"{side}_mean").to(x.dtype)
        return (x - mean.unsqueeze(1)) @ self.get_parameter(f"{side}_whitening").to(x.dtype)

    def _normalise(self, joined: Tensor) -> Tensor:
        weight = self.norm_weight if self.config.normaliser == "rmsnorm" else None
        return normalise(joined, weight, self.config)
