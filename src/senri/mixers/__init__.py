"""Mixers: the part of a block that moves information between tokens. One a file; `build_mixer` picks by layer type."""

from typing import Any

from senri.mixers.added_memory import AddedMemory, ReadStrength
from senri.mixers.copied_memory import CopiedMemory, given_values, seen_by_memory
from senri.mixers.memory_alone import MemoryAlone
from senri.mixers.saying import Saying, mixture
from senri.mixers.sink import AttentionSink
from senri.mixers.softmax import SenriMixer, SoftmaxAttention
from senri.mixers.window_memory import MemoryGate, WindowMemory

__all__ = [
    "AddedMemory",
    "AttentionSink",
    "CopiedMemory",
    "MemoryAlone",
    "MemoryGate",
    "ReadStrength",
    "Saying",
    "SenriMixer",
    "SoftmaxAttention",
    "WindowMemory",
    "build_mixer",
    "given_values",
    "mixture",
    "seen_by_memory",
]


def build_mixer(config: Any, layer_idx: int) -> SenriMixer:
    """Return the mixer of one layer of a `SenriConfig`."""
    layer_type = config.layer_types[layer_idx]
    if layer_type == "linear_attention":
        return MemoryAlone(config, layer_idx)
    if layer_type in ("hybrid", "hybrid_sliding"):
        kinds = {"gate": WindowMemory, "add": AddedMemory, "copy": CopiedMemory}
        return kinds[config.memory_config_of(layer_idx).combine](config, layer_idx)
    return SoftmaxAttention(config, layer_idx, sliding=layer_type == "sliding_attention")
