"""Where a memory's own projections start from: the base's projections of the layer it replaces, where they fit."""

from collections.abc import Mapping

import torch
from torch import Tensor

from senri.models.configuration_senri import SenriConfig


def fits_base(config: SenriConfig) -> bool:
    """Tell whether the base's query, key and value projections can start a memory that replaces attention.

    They fit head by head when the sizes are the base's, and as a whole when the memory has one key/value head for each
    query head and is as wide as the base's queries together (key/value heads are then repeated, as attention does).
    """
    memory = config.memory_config
    if memory.combine != "alone" or memory.projections != "own" or memory.convolution_dense:
        return False
    sizes = config.memory_sizes()
    heads, kv_heads = sizes["num_heads"], sizes["num_key_value_heads"]
    dims = (sizes["key_dim"], sizes["value_dim"])
    if (heads, kv_heads) == (config.num_attention_heads, config.num_key_value_heads):
        return dims == (config.head_dim, config.head_dim)
    assert config.head_dim is not None
    width = config.num_attention_heads * config.head_dim
    return heads == kv_heads and all(heads * dim == width for dim in dims)


def own_projection_starts(
    config: SenriConfig, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Make the starts of own projections from the base's.

    Args:
        config: of the model to make.
        weights: the base's tensors by Senri name.

    Returns:
        Tensors by Senri name, and for each the name of the tensor it comes from; empty where the base does not fit.
    """
    starts: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    if not fits_base(config):
        return starts, origins
    sizes = config.memory_sizes()
    assert config.num_key_value_heads is not None
    group = config.num_attention_heads // config.num_key_value_heads
    is_repeated = sizes["num_key_value_heads"] != config.num_key_value_heads or sizes["key_dim"] != config.head_dim
    for layer in config.memory_layers or []:
        prefix = f"model.layers.{layer}.self_attn"
        for projection in ("q_proj", "k_proj", "v_proj"):
            for kind in ("weight", "bias"):
                source, target = f"{prefix}.{projection}.{kind}", f"{prefix}.memory.inputs.{projection}.{kind}"
                if source in weights:
                    value = weights[source]
                    if projection != "q_proj" and is_repeated:
                        heads = value.reshape(config.num_key_value_heads, -1, *value.shape[1:])
                        value = heads.repeat_interleave(group, dim=0).flatten(0, 1)
                    starts[target], origins[target] = value.clone(), source
                else:
                    starts[target] = torch.zeros_like(starts[target.replace("bias", "weight")][:, 0])
    return starts, origins
