"""Blocks to mix by hand: `PythiaLayer` and its three relatives with a memory. They are `SenriForCausalLM`'s own blocks.

    TransformerLM(layers=[InfiniLayer(512, 8, 2048), *[PythiaLayer(512, 8, 2048) for _ in range(5)]])

Each also runs alone: `layer(hidden_states)`. What is not given comes from `config/layers.yaml`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from senri.errors import SenriError
from senri.mixers.context import MixerMasks
from senri.models.configuration_senri import SenriConfig
from senri.models.masks import create_senri_masks
from senri.models.modeling_senri import SenriModel
from senri.models.pretrained import SenriDecoderLayer
from senri.models.rotary import SenriRotaryEmbedding
from senri.settings import load_settings


@dataclass
class BlockSettings:
    """What `config/layers.yaml` says of every block; names as in `SenriConfig`."""

    hidden_act: str
    layer_norm_eps: float
    rope_theta: float
    partial_rotary_factor: float
    initializer_range: float


@dataclass
class LayerSettings:
    """What `config/layers.yaml` holds.

    Args:
        vocab_size: tokens of a model's vocabulary.
        max_position_embeddings: longest text that a model is meant for, where attention is full.
        block: of every layer.
        memory: fields of `MemoryConfig` common to the layers with a memory.
        use_delta_rule: the rule `delta` instead of `linear`.
        num_memory_banks: of `InfiniLayer`.
        segments_per_bank: of `InfiniLayer`.
        num_memories: of `MultiMemoryLayer` and `HierarchicalLayer`.
    """

    vocab_size: int
    max_position_embeddings: int
    block: BlockSettings
    memory: dict[str, Any]
    use_delta_rule: bool
    num_memory_banks: int
    segments_per_bank: int
    num_memories: int


@cache
def layer_settings() -> LayerSettings:
    """Read `config/layers.yaml`."""
    return load_settings(LayerSettings, "layers")


class PythiaLayer(SenriDecoderLayer):
    """A GPT-NeoX block: softmax attention with partial rotary positions beside an MLP.

    Args:
        hidden_size: width of the model.
        num_heads: attention heads.
        intermediate_size: width of the MLP.
        sliding_window: tokens that attention sees; None for all.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, intermediate_size: int, sliding_window: int | None = None
    ) -> None:
        self._build(hidden_size, num_heads, intermediate_size, sliding_window, None)

    def _build(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        sliding_window: int | None,
        memory: dict[str, Any] | None,
    ) -> None:
        if num_heads < 1 or hidden_size % num_heads:
            raise SenriError(f"hidden_size {hidden_size} cannot be split between num_heads {num_heads}.")
        block = layer_settings().block
        config = SenriConfig(
            base_model_type="gpt_neox",
            vocab_size=1,  # a layer knows no words; the model that it is put in does
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=2,  # the second stands for the rest of a model: a memory alone is not all of one
            num_attention_heads=num_heads,
            hidden_act=block.hidden_act,
            layer_norm_eps=block.layer_norm_eps,
            initializer_range=block.initializer_range,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": block.rope_theta,
                "partial_rotary_factor": block.partial_rotary_factor,
            },
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
            sliding_window=sliding_window,
            default_layer_type="full_attention" if sliding_window is None else "sliding_attention",
            memory_layers=[] if memory is None else [0],
            memory=memory,
        )
        SenriDecoderLayer.__init__(self, config, 0)
        # A whole model sets its parameters; taking over those of a small one gives this layer the same start.
        self.load_state_dict(SenriModel(config).layers[0].state_dict())
        self.config = config

    def forward(
        self,
        hidden_states: Tensor,
        masks: MixerMasks | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the new hidden states `[batch, seq, hidden]`; alone, the tokens are a whole text from its start."""
        if masks is None:
            masks = MixerMasks(**create_senri_masks(self.config, hidden_states, None, None))
        if position_embeddings is None:
            positions = torch.arange(hidden_states.shape[1], device=hidden_states.device).unsqueeze(0)
            position_embeddings = SenriRotaryEmbedding(self.config).to(hidden_states.device)(hidden_states, positions)
        return super().forward(hidden_states, masks, position_embeddings, past_key_values, **kwargs)


class _MemoryLayer(PythiaLayer):
    """Common to the layers with a memory: its fields from the settings, then those of the kind, then the caller's."""

    memory_type: str

    def _build_with_memory(
        self,
        sizes: tuple[int, int, int],
        sliding_window: int | None,
        use_delta_rule: bool | None,
        options: dict[str, Any],
        memory: dict[str, Any],
    ) -> None:
        settings = layer_settings()
        delta = settings.use_delta_rule if use_delta_rule is None else use_delta_rule
        own = {"type": self.memory_type, "rule": "delta" if delta else "linear", "options": options}
        fields = {**settings.memory, **own, **memory}
        if fields.get("projections") == "own":
            heads = fields.get("num_heads") or sizes[1]
            width = {"key_dim": sizes[0] // heads, "value_dim": sizes[0] // heads}
            fields = {**width, **fields}
        self._build(*sizes, sliding_window, fields)


class InfiniLayer(_MemoryLayer):
    """A Pythia block whose attention is joined by a memory (Infini-attention, Munkhdalai et al. 2024), or banks of it.

    The memory has one head as wide as the model, because keys of a single attention head are too narrow for a linear
    memory to tell them apart.

    Args:
        hidden_size: width of the model and of the memory's keys and values.
        num_heads: attention heads.
        intermediate_size: width of the MLP.
        sliding_window: tokens that attention sees; None for all.
        use_delta_rule: a write corrects what its key already reads; None as in the settings.
        num_memory_banks: matrices that are written in turn.
        segments_per_bank: segments until the next bank is written.
        **memory: any other field of `MemoryConfig` (its `num_heads` is 1).
    """

    memory_type = "tensor"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        sliding_window: int | None = None,
        use_delta_rule: bool | None = None,
        num_memory_banks: int | None = None,
        segments_per_bank: int | None = None,
        **memory: Any,
    ) -> None:
        settings = layer_settings()
        options = {
            "num_memory_banks": settings.num_memory_banks if num_memory_banks is None else num_memory_banks,
            "segments_per_bank": settings.segments_per_bank if segments_per_bank is None else segments_per_bank,
        }
        sizes = (hidden_size, num_heads, intermediate_size)
        self._build_with_memory(sizes, sliding_window, use_delta_rule, options, memory)


class MultiMemoryLayer(_MemoryLayer):
    """A Pythia block whose attention is joined by several memories that queries attend to (`MultiMemory`).

    Args:
        hidden_size: width of the model and of the memories' keys and values.
        num_heads: attention heads.
        intermediate_size: width of the MLP.
        sliding_window: tokens that attention sees; None for all.
        use_delta_rule: a write corrects what its key already reads; None as in the settings.
        num_memories: how many; None as in the settings.
        **memory: any other field of `MemoryConfig`; `options` may hold the memory's other options.
    """

    memory_type = "multi"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        sliding_window: int | None = None,
        use_delta_rule: bool | None = None,
        num_memories: int | None = None,
        **memory: Any,
    ) -> None:
        count = layer_settings().num_memories if num_memories is None else num_memories
        options = {"num_memories": count, **memory.pop("options", {})}
        sizes = (hidden_size, num_heads, intermediate_size)
        self._build_with_memory(sizes, sliding_window, use_delta_rule, options, memory)


class HierarchicalLayer(MultiMemoryLayer):
    """A Pythia block whose attention is joined by fine memories under a coarse one (`HierarchicalMemory`).

    Arguments are those of `MultiMemoryLayer`; `num_memories` counts the fine ones.
    """

    memory_type = "hierarchical"
