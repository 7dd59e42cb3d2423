"""SenriPreTrainedModel: a block of either family, and how models of such blocks are loaded, saved and initialised."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from senri.memory import Memory, MemoryInputs
from senri.memory.input_whitening import InputWhitening
from senri.memory.shared_read import QueryInputs
from senri.memory.short_convolution import ShortConvolution
from senri.memory.token_codes import TokenCodes
from senri.mixers import (
    AddedMemory,
    AttentionSink,
    MemoryGate,
    ReadStrength,
    Saying,
    SoftmaxAttention,
    build_mixer,
)
from senri.mixers.context import MixerMasks
from senri.models.configuration_senri import SenriConfig

SELF_INITIALISING = (
    Memory,
    MemoryInputs,
    QueryInputs,
    InputWhitening,
    TokenCodes,
    ShortConvolution,
    MemoryGate,
    ReadStrength,
    Saying,
    AttentionSink,
)
"""Modules that set their own parameters at the start."""


def build_norm(config: SenriConfig) -> nn.Module:
    """Return the family's norm over the hidden size."""
    if config.family == "gpt_neox":
        return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    return LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class SenriDecoderLayer(GradientCheckpointingLayer):
    """A block: norm, mixer, norm, MLP; one after the other, or side by side (GPT-NeoX's parallel residual)."""

    def __init__(self, config: SenriConfig, layer_idx: int) -> None:
        super().__init__()
        is_neox = config.family == "gpt_neox"
        self.parallel_residual = is_neox and config.use_parallel_residual
        self.self_attn = build_mixer(config, layer_idx)
        self.mlp = GPTNeoXMLP(config) if is_neox else LlamaMLP(config)
        self.input_layernorm = build_norm(config)
        self.post_attention_layernorm = build_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        masks: MixerMasks,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the new hidden states `[batch, seq, hidden]`."""
        mixed: Tensor
        mixed, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            masks=masks,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **kwargs,
        )
        mixed = self.dropout(mixed)
        if self.parallel_residual:
            return self._transform(hidden_states) + mixed + hidden_states
        hidden_states = hidden_states + mixed
        return hidden_states + self._transform(hidden_states)

    def _transform(self, hidden_states: Tensor) -> Tensor:
        transformed: Tensor = self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))
        return transformed


class SenriPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation common to all Senri models."""

    config_class = SenriConfig
    config: SenriConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["SenriDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # A memory can be cropped exactly (its writes are replayed), so assisted decoding may roll it back.
    _is_stateful = False
    _supports_context_parallel = False
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": SenriDecoderLayer,
        "attentions": SoftmaxAttention,
    }

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers skips custom modules without parameters of their own, but here these set up their children; what
        # a checkpoint brought is protected below.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, SELF_INITIALISING):
            # What came from a checkpoint stays; children were initialised before their parent.
            loaded = [p for p in module.parameters() if getattr(p, "_is_hf_initialized", False)]
            values = [p.clone() for p in loaded]
            module.reset_parameters()
            for parameter, value in zip(loaded, values, strict=True):
                parameter.copy_(value)
        elif isinstance(module, AddedMemory):
            init.zeros_(module.memory_o_proj.weight)
