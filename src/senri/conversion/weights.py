"""Weight maps: a base's tensors, by name, to Senri's names; GPT-NeoX's fused query/key/value is split on the way."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from senri.conversion.families import check_architecture
from senri.errors import SenriError

_GPT_NEOX_NAMES = (
    ("gpt_neox.embed_in.", "model.embed_tokens."),
    ("gpt_neox.final_layer_norm.", "model.norm."),
    ("gpt_neox.layers.", "model.layers."),
    (".attention.dense.", ".self_attn.o_proj."),
)
_FUSED = ".attention.query_key_value."


def split_fused_qkv(fused: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split GPT-NeoX's query_key_value, whose rows are interleaved per head: [heads, (q, k, v), head_dim].

    Args:
        fused: weight `[3 * hidden, hidden]` or bias `[3 * hidden]`.
        num_heads: attention heads.

    Returns:
        q, k and v, each `[hidden, hidden]` or `[hidden]`, heads in order.
    """
    per_head = fused.reshape(num_heads, 3, -1, *fused.shape[1:])
    q, k, v = (part.flatten(0, 1).contiguous() for part in per_head.unbind(1))
    return q, k, v


def map_name(name: str, model_type: str) -> list[str]:
    """Return the Senri names of one of the base's tensors: three for a fused query/key/value, else one."""
    if model_type != "gpt_neox":
        return [name]
    for old, new in _GPT_NEOX_NAMES:
        name = name.replace(old, new)
    if _FUSED in name:
        return [name.replace(_FUSED, f".self_attn.{projection}.") for projection in ("q_proj", "k_proj", "v_proj")]
    return [name]


def convert_weights(base_state_dict: Mapping[str, Tensor], base_config: PreTrainedConfig) -> dict[str, Tensor]:
    """Rename and split the base's tensors. A tied output projection is left out: tying makes it again.

    Args:
        base_state_dict: the base's `state_dict()`.
        base_config: its config.

    Returns:
        Tensors by Senri name; those that only change their name share the base's storage.

    Raises:
        SenriError: an unknown architecture, or a tensor that is missing, unknown or of another shape than the base's
            config says.
    """
    check_architecture(base_config.model_type, base_config.name_or_path or "the base")
    check_shapes({name: tuple(tensor.shape) for name, tensor in base_state_dict.items()}, base_config)
    converted: dict[str, Tensor] = {}
    for name, tensor in base_state_dict.items():
        names = map_name(name, base_config.model_type)
        parts = (tensor,) if len(names) == 1 else split_fused_qkv(tensor, base_config.num_attention_heads)
        converted.update(zip(names, parts, strict=True))
    if base_config.tie_word_embeddings:
        converted.pop("lm_head.weight", None)
    return converted


def check_shapes(shapes: Mapping[str, tuple[int, ...]], base_config: PreTrainedConfig) -> None:
    """Compare names and shapes with those of the architecture, made from the config without memory.

    Raises:
        SenriError: the first tensor that is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(base_config)
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    tied = set(skeleton._tied_weights_keys or {}) if base_config.tie_word_embeddings else set()
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape:
            raise SenriError(
                f"the base's tensor {name} has the shape {list(shapes[name])}, but its config says {list(shape)}: "
                f"config.json and the weights do not belong together."
            )
        if name not in shapes and name not in tied:
            raise SenriError(
                f"the base lacks the tensor {name}, which its architecture {base_config.model_type!r} needs: "
                f"the checkpoint is incomplete."
            )
    for name in shapes:
        if name not in expected:
            raise SenriError(
                f"the base has a tensor {name}, which its architecture {base_config.model_type!r} does not know: "
                f"it is another kind of model than its config.json says."
            )


def group_name(name: str) -> str:
    """Return a parameter's name with its layer number replaced by `*`: one group for all layers."""
    return re.sub(r"\.layers\.\d+\.", ".layers.*.", name)
