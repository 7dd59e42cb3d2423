"""What each supported architecture calls its settings: a base's config in, the fields of `SenriConfig` out."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from senri.conversion.preset import Preset
from senri.errors import SenriError, nearest
from senri.models.configuration_senri import SenriConfig

Fields = dict[str, Any]


def _common_fields(base: PreTrainedConfig) -> Fields:
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "max_position_embeddings",
        "initializer_range",
        "attention_dropout",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    fields = {name: getattr(base, name) for name in names}
    fields["rope_parameters"] = dict(base.rope_parameters)
    return fields


def _llama_fields(base: PreTrainedConfig) -> Fields:
    return _common_fields(base) | {
        "num_key_value_heads": base.num_key_value_heads,
        "head_dim": base.head_dim,
        "rms_norm_eps": base.rms_norm_eps,
        "qkv_bias": base.attention_bias,
        "o_bias": base.attention_bias,
        "mlp_bias": base.mlp_bias,
    }


def _qwen2_fields(base: PreTrainedConfig) -> Fields:
    if base.use_sliding_window:
        raise SenriError(
            "the base slides its attention window in some layers (use_sliding_window is true), which Senri does not "
            "convert: set use_sliding_window to false in the base's config.json and choose the window in the preset."
        )
    return _common_fields(base) | {
        "num_key_value_heads": base.num_key_value_heads,
        # Qwen2's config has no head_dim field, but its attention reads one where a checkpoint gives it.
        "head_dim": getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads,
        "rms_norm_eps": base.rms_norm_eps,
        "qkv_bias": True,
        "o_bias": False,
        "mlp_bias": False,
    }


def _gpt_neox_fields(base: PreTrainedConfig) -> Fields:
    return _common_fields(base) | {
        "num_key_value_heads": base.num_attention_heads,
        "head_dim": base.hidden_size // base.num_attention_heads,
        "layer_norm_eps": base.layer_norm_eps,
        "hidden_dropout": base.hidden_dropout,
        "use_parallel_residual": base.use_parallel_residual,
        "qkv_bias": base.attention_bias,
        "o_bias": base.attention_bias,
        "mlp_bias": True,
    }


ARCHITECTURES: dict[str, Callable[[PreTrainedConfig], Fields]] = {
    "llama": _llama_fields,
    "qwen2": _qwen2_fields,
    "gpt_neox": _gpt_neox_fields,
}
"""`model_type` of every base that can be converted, and how its config is read."""


def check_architecture(model_type: str, name: str) -> None:
    """Refuse a base whose architecture has no weight map.

    Args:
        model_type: the `model_type` of the base's config.
        name: what the user called the base; for the message.

    Raises:
        SenriError: the architecture is not supported; names the supported ones.
    """
    if model_type == "senri":
        raise SenriError(f"{name} is already a Senri model: give the base that it was converted from.")
    if model_type not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise SenriError(f"{name} has the architecture {model_type!r}, but Senri converts only: {supported}.")


def convert_config(base_config: PreTrainedConfig, preset: Preset, name: str = "") -> SenriConfig:
    """Build the Senri config of a converted base.

    Args:
        base_config: config of the base (`LlamaConfig`, `Qwen2Config` or `GPTNeoXConfig`).
        preset: which layers get a memory and what it is made of.
        name: where the base came from; becomes `base_name_or_path`.

    Raises:
        SenriError: an architecture, an activation or a quantised base that cannot be converted, or a preset that does
            not fit the base (such as `memory_layers` beyond the last layer).
    """
    label = name or base_config.name_or_path or "the base"
    check_architecture(base_config.model_type, label)
    if getattr(base_config, "quantization_config", None) is not None:
        raise SenriError(f"{label} holds quantised weights: give the unquantised checkpoint, or a .gguf file.")
    if base_config.hidden_act not in ACT2FN:
        raise SenriError(
            f"{label} has hidden_act {base_config.hidden_act!r}, which transformers does not know: "
            f"{nearest(base_config.hidden_act, ACT2FN)}"
        )
    return SenriConfig(
        **ARCHITECTURES[base_config.model_type](base_config),
        base_model_type=base_config.model_type,
        base_name_or_path=name,
        memory_layers=list(preset.memory_layers),
        sliding_window=preset.sliding_window,
        default_layer_type=preset.default_layer_type,
        attention_sink=preset.attention_sink,
        memory=preset.memory.to_dict(),
    )
