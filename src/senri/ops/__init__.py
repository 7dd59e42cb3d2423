"""Pure tensor functions: linear attention, delta rules and sliding-window attention. `naive` is what they mean."""

from senri.ops.backend import delta_rule, gated_delta_rule, linear_attention
from senri.ops.sink import append_sink_features, drop_extra_features
from senri.ops.sliding_window import sliding_window_attention

__all__ = [
    "append_sink_features",
    "delta_rule",
    "drop_extra_features",
    "gated_delta_rule",
    "linear_attention",
    "sliding_window_attention",
]
