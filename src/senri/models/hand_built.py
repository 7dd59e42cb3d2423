"""TransformerLM: a model from any mix of layers. create_model: the four that `config/models` describes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from senri.errors import SenriError, nearest
from senri.models.configuration_senri import SenriConfig
from senri.models.layers import HierarchicalLayer, InfiniLayer, MultiMemoryLayer, PythiaLayer, layer_settings
from senri.models.modeling_senri import SenriForCausalLM
from senri.settings import config_dir, load_settings

LAYERS: dict[str, type[PythiaLayer]] = {
    kind.__name__: kind for kind in (PythiaLayer, InfiniLayer, MultiMemoryLayer, HierarchicalLayer)
}
"""The layers that a file in `config/models` may name."""

MODELS = {
    "pythia": "pythia_baseline",
    "infini": "pythia_infini",
    "multi_memory": "pythia_multi_memory",
    "hierarchical": "pythia_hierarchical",
}
"""The models of `create_model` and their files in `config/models`."""

_LAYER_OPTIONS = {
    "use_delta_rule": (InfiniLayer, MultiMemoryLayer),
    "num_memory_banks": (InfiniLayer,),
    "segments_per_bank": (InfiniLayer,),
    "num_memories": (MultiMemoryLayer,),
}
"""The options of `create_model` that go to layers, and which layers (their subclasses too) take them."""

_SAME_IN_ALL = ("hidden_size", "num_attention_heads", "intermediate_size")


@dataclass
class ModelSettings:
    """What a file in `config/models` holds.

    Args:
        layers: names of `LAYERS`, from the first to the last.
        hidden_size: width of the model.
        num_heads: attention heads.
        intermediate_size: width of the MLPs.
    """

    layers: list[str]
    hidden_size: int
    num_heads: int
    intermediate_size: int

    def __post_init__(self) -> None:
        for name in self.layers:
            if name not in LAYERS:
                raise SenriError(f"layers names {name!r}: {nearest(name, LAYERS)}")


def TransformerLM(  # noqa: N802  (a call of it makes a model, as a class would)
    layers: Sequence[PythiaLayer], vocab_size: int | None = None, max_position_embeddings: int | None = None
) -> SenriForCausalLM:
    """Put layers together to a language model.

    The model is a `SenriForCausalLM` like any other: it saves, loads with AutoModelForCausalLM and generates. The
    layers become part of it, with the parameters that they have.

    Args:
        layers: from the first to the last, any mix of kinds, all of one width.
        vocab_size: as in `config/layers.yaml` if None.
        max_position_embeddings: likewise.

    Raises:
        SenriError: no layers, one layer twice, or layers that do not fit each other.
    """
    _check(layers)
    configs = [layer.config for layer in layers]
    with_memory = [index for index, config in enumerate(configs) if config.memory_layers]
    common = configs[with_memory[0]].memory if with_memory else None
    settings = layer_settings()
    changes = {
        "vocab_size": settings.vocab_size if vocab_size is None else vocab_size,
        "max_position_embeddings": max_position_embeddings or settings.max_position_embeddings,
        "num_hidden_layers": len(configs),
        "layer_types": [config.layer_types[0] for config in configs if config.layer_types],
        "default_layer_type": "full_attention",
        "sliding_window": next((config.sliding_window for config in configs if config.sliding_window), None),
        "memory_layers": with_memory,
        "memory": common,
        "layer_memories": {index: configs[index].memory for index in with_memory if configs[index].memory != common},
    }
    config = SenriConfig.from_dict(configs[0].to_dict() | changes)
    model = SenriForCausalLM(config)
    for index, layer in enumerate(layers):
        if index in with_memory and config.writing_layer(index) != index:  # it reads a state that another layer writes
            layer.self_attn.memory = model.model.layers[index].self_attn.memory
        layer.config = layer.self_attn.config = model.config
        layer.self_attn.layer_idx = index
        model.model.layers[index] = layer
    return model


def create_model(name: str, **options: Any) -> SenriForCausalLM:
    """Build one of the four models to compare: six blocks of width 512 with 8 heads, untrained.

    `pythia` is the control; `infini`, `multi_memory` and `hierarchical` have a memory in their first layer.

    Args:
        name: of `MODELS`.
        **options: `use_delta_rule`, `num_memory_banks` and `segments_per_bank` (infini), `num_memories` (multi_memory,
            hierarchical); `hidden_size`, `num_heads`, `intermediate_size`; those of `TransformerLM`. What is not given
            comes from `config/`.

    Raises:
        SenriError: an unknown name or option, or an option that this model has no use for.
    """
    if name not in MODELS:
        raise SenriError(f"there is no model {name!r}: {nearest(name, MODELS)}")
    settings = load_settings(ModelSettings, config_dir() / "models" / f"{MODELS[name]}.yaml")
    sizes = {key: options.pop(key, getattr(settings, key)) for key in ("hidden_size", "num_heads", "intermediate_size")}
    whole = {key: options.pop(key) for key in ("vocab_size", "max_position_embeddings") if key in options}
    kinds = [LAYERS[layer] for layer in settings.layers]
    for key in options:
        if key not in _LAYER_OPTIONS:
            raise SenriError(f"create_model has no option {key!r}: {nearest(key, [*_LAYER_OPTIONS, *sizes])}")
        if not any(issubclass(kind, _LAYER_OPTIONS[key]) for kind in kinds):
            raise SenriError(f"a model {name!r} has no use for {key!r}: leave it out.")
    layers = []
    for kind in kinds:
        own = {key: value for key, value in options.items() if issubclass(kind, _LAYER_OPTIONS[key])}
        layers.append(kind(**sizes, **own))
    return TransformerLM(layers, **whole)


def _check(layers: Sequence[PythiaLayer]) -> None:
    if not isinstance(layers, Sequence) or not layers:
        raise SenriError("a model needs a list of at least one layer: give some of senri.models.layers.")
    for index, layer in enumerate(layers):
        if not isinstance(layer, PythiaLayer):
            raise SenriError(f"layer {index} is a {type(layer).__name__}: take layers of senri.models.layers.")
        if any(layer is other for other in layers[:index]):
            raise SenriError(f"layer {index} stands in the list twice: make a layer for every place.")
        for field in _SAME_IN_ALL:
            mine, first = getattr(layer.config, field), getattr(layers[0].config, field)
            if mine != first:
                raise SenriError(f"layer {index} has {field} {mine}, but layer 0 has {first}: they must be the same.")
    windows = {layer.config.sliding_window for layer in layers if layer.config.sliding_window is not None}
    if len(windows) > 1:
        raise SenriError(f"the layers have sliding windows of {sorted(windows)} tokens: one model has one.")
