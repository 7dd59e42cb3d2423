"""Preset: which base, which layers get a memory, how far the window reaches and what the memory is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from senri.errors import SenriError
from senri.memory import MemoryConfig, memory_class
from senri.settings import apply_overrides, build, find, load_yaml


@dataclass
class Preset:
    """One way to convert a base, as a YAML file in `config/presets` describes it.

    Args:
        base: what `resolve_base` takes: a folder, a .gguf file or a hub id. May be left out where a command names it.
        memory_layers: indices of the layers that get a memory, counted from 0.
        sliding_window: tokens a sliding layer sees, its own included; None for full attention.
        default_layer_type: attention of the layers without a memory.
        attention_sink: keep a stand-in for the first token in every sliding layer, measured on the base.
        memory: what the memory is made of.
        trained: parameters that training has left: a name in `senri.conversion.trained.shipped_memories`, or a
            .safetensors file; None for a memory that is calibrated only.

    Raises:
        SenriError: a window, a layer or a combination that cannot be; the sentence names it. Layers beyond the base's
            last are found at conversion, when the base is known.
    """

    base: str = ""
    memory_layers: list[int] = field(default_factory=list)
    sliding_window: int | None = None
    default_layer_type: Literal["full_attention", "sliding_attention"] = "full_attention"
    attention_sink: bool = False
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    trained: str | None = None

    def __post_init__(self) -> None:
        if self.sliding_window is not None and self.sliding_window < 1:
            raise SenriError(f"sliding_window is {self.sliding_window}, but it must be at least 1 (or null for none).")
        if self.sliding_window is None and self.default_layer_type == "sliding_attention":
            raise SenriError("default_layer_type is 'sliding_attention', but sliding_window is not set: give its size.")
        for layer in self.memory_layers:
            if layer < 0:
                raise SenriError(f"memory_layers has {layer}, but layers are counted from 0.")
            if self.memory_layers.count(layer) > 1:
                raise SenriError(f"memory_layers names layer {layer} twice.")


def load_preset(preset: Preset | str | Path, overrides: Sequence[str] = ()) -> Preset:
    """Return a preset by name or path with `dotted.key=value` words applied; a `Preset` passes through unchanged.

    Raises:
        SenriError: an unknown name or key (with the nearest), a wrong value, or overrides of a ready-made `Preset`.
    """
    if isinstance(preset, Preset):
        if overrides:
            raise SenriError(f"override {overrides[0]!r} needs a preset's name or file, not a Preset object.")
        return preset
    path = find(preset)
    values = apply_overrides(load_yaml(path), overrides)
    if isinstance(memory := values.get("memory"), dict):
        # what the file leaves out is the default of its type of memory
        values["memory"] = memory_class(str(memory.get("type", MemoryConfig.type))).DEFAULTS | memory
    return build(Preset, values, " with ".join(filter(None, [str(path), " ".join(overrides)])))
