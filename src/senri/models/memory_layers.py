"""What the memory of one layer is made of, and whether it fits the model around it."""

from collections.abc import Mapping
from typing import Any

from senri.errors import SenriError
from senri.memory import MemoryConfig, memory_class, resolve_config


def by_layer(sections: Any) -> dict[str, dict[str, Any]] | None:
    """Return the sections of single layers with words as keys, as JSON has them; None where there are none.

    Raises:
        SenriError: not a mapping of layer indices to sections.
    """
    if not sections:
        return None
    is_mapping = isinstance(sections, Mapping) and all(isinstance(fields, Mapping) for fields in sections.values())
    if not is_mapping:
        raise SenriError(
            f"layer_memories is {sections!r}, but it must map layer indices to sections, such as "
            "{10: {'rule': 'delta'}}."
        )
    return {str(layer): dict(fields) for layer, fields in sections.items()}


def layer_config(common: Mapping[str, Any], own: Mapping[str, Any]) -> MemoryConfig:
    """Return the knobs of a layer: its own over the common ones.

    A layer of another memory type takes none of the common options, which belong to the common type.

    Raises:
        SenriError: an unknown type, key or option, or a wrong value.
    """
    merged = {**common, **own}
    if own.get("type", common["type"]) == common["type"]:
        merged["options"] = {**common["options"], **own.get("options", {})}
    else:
        merged["options"] = dict(own.get("options", {}))
    return resolve_config(merged)


def check_stable(memory: MemoryConfig) -> None:
    """Refuse knobs with which a state grows without bound.

    Raises:
        SenriError: names the knobs.
    """
    corrects_together = memory.rule != "linear" and memory.granularity == "segment" and memory.segment_length > 1
    if corrects_together and memory.normaliser == "rmsnorm" and not memory_class(memory.type).stable_in_segments:
        # Every token of the segment subtracts the same wrong reading: alike keys overshoot and the state diverges.
        raise SenriError(
            f"memory.rule {memory.rule!r} with memory.normaliser 'rmsnorm' is unstable at memory.granularity "
            "'segment': use memory.granularity 'token' or memory.normaliser 'denominator'."
        )


def check_memory(config: Any, layer: int) -> None:
    """Check that a layer's memory is stable and fits the model.

    Args:
        config: a `SenriConfig`.
        layer: one of its `memory_layers`.

    Raises:
        SenriError: a combination that cannot be; the sentence names the knobs.
    """
    memory = config.memory_config_of(layer)
    check_stable(memory)
    sizes = config.memory_sizes(layer)
    if sizes["num_heads"] % sizes["num_key_value_heads"]:
        raise SenriError(
            f"memory.num_heads {sizes['num_heads']} is not a multiple of "
            f"memory.num_key_value_heads {sizes['num_key_value_heads']}."
        )
    width, base_width = sizes["num_heads"] * sizes["value_dim"], config.num_attention_heads * config.head_dim
    if memory.combine == "gate" and width != base_width:
        raise SenriError(
            f"memory.combine 'gate' mixes into the base's {config.num_attention_heads} heads of {config.head_dim}, so "
            f"memory.num_heads times memory.value_dim must be {base_width}, not {width}: use memory.combine 'add'."
        )
    writer = config.writing_layer(layer)
    if writer != layer and memory != config.memory_config_of(writer):
        raise SenriError(
            f"layers {writer} and {layer} share a state (memory.state 'shared') but differ in their memory: give them "
            "the same fields."
        )
