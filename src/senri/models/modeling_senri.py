"""SenriForCausalLM: one decoder for both families, whose layers mix tokens by attention, by memory, or by both.

A block is family x mixer (`senri.models.pretrained`). Norms, rotary embedding, MLPs, masks and attention backends are
transformers' own; parameter names are Llama's, so a Llama or Qwen2 checkpoint loads with only the memories missing.
State lives in the cache (`senri.mixers.cache_senri`), never on modules.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from senri.memory.branch import MemoryBranch
from senri.memory.shared_read import SharedReader
from senri.mixers import CopiedMemory, SenriMixer
from senri.mixers.cache_senri import adopt_cache
from senri.mixers.context import MixerMasks
from senri.models.configuration_senri import SenriConfig
from senri.models.masks import create_senri_masks, packed_sequences, tokens_seen
from senri.models.pretrained import SenriDecoderLayer, SenriPreTrainedModel, build_norm
from senri.models.rotary import SenriRotaryEmbedding
from senri.models.sessions import SessionMixin


class SenriModel(SenriPreTrainedModel):
    """The decoder without a head."""

    def __init__(self, config: SenriConfig) -> None:
        super().__init__(config)
        config.check_layer_types()
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.embedding_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([SenriDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = build_norm(config)
        self.rotary_emb = SenriRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    def memory_branches(self) -> dict[int, MemoryBranch | SharedReader]:
        """Return the memory of each layer that has one, by layer index."""
        mixers = {i: layer.self_attn for i, layer in enumerate(self.layers)}
        return {i: mixer.memory for i, mixer in mixers.items() if hasattr(mixer, "memory")}

    def adopt(self, cache: Cache | None) -> Cache | None:
        """Give a transformers cache Senri's layers where this model has memories."""
        return adopt_cache(cache, self.config, self.memory_branches())

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        start_layer: int = 0,
        stop_layer: int | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder, or a stretch of its layers; other arguments and outputs as in transformers' decoders.

        Args:
            start_layer: the first layer that runs; above 0, `inputs_embeds` are the hidden states that enter it, and
                `input_ids` may stand beside them, for memories that copy.
            stop_layer: the first layer that does not run; the result is then what enters it, without the final norm.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`.
        """
        if (input_ids is None) == (inputs_embeds is None) and (start_layer == 0 or inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        embeddings = inputs_embeds if start_layer == 0 else None
        if input_ids is not None:
            embeddings = self.embed_tokens(input_ids)
        if inputs_embeds is None:
            inputs_embeds = embeddings
        assert inputs_embeds is not None
        sequence_ids = packed_sequences(position_ids, attention_mask, past_key_values, inputs_embeds.shape[0])
        if use_cache and past_key_values is None and sequence_ids is None:  # packed rows cannot be gone on with
            past_key_values = DynamicCache(config=self.config)
        past_key_values = self.adopt(past_key_values)
        if position_ids is None:
            seen = tokens_seen(self.config, past_key_values, start_layer)
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        masks = attention_mask
        if not isinstance(masks, dict):
            masks = create_senri_masks(
                self.config, inputs_embeds, attention_mask, past_key_values, position_ids, sequence_ids, start_layer
            )
        hidden_states = self.embedding_dropout(inputs_embeds) if start_layer == 0 else inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        mixer_masks = MixerMasks(**masks, input_ids=input_ids, embeddings=embeddings)
        for layer in self.layers[start_layer:stop_layer]:
            hidden_states = layer(
                hidden_states,
                masks=mixer_masks,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                position_ids=position_ids,
                use_cache=use_cache,
                **kwargs,
            )
        if stop_layer is None:
            hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


class SenriForCausalLM(SessionMixin, SenriPreTrainedModel, GenerationMixin):
    """The decoder with a language-model head, generation, and sessions."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}
    _pp_plan: ClassVar[dict[str, Any]] = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan: ClassVar[dict[str, str]] = {"lm_head": "keep_full_weight"}
    create_masks_for_generate = staticmethod(create_senri_masks)

    def __init__(self, config: SenriConfig) -> None:
        super().__init__(config)
        self.model = SenriModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        update_memory: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model; as in transformers' causal language models, and in addition:

        Args:
            input_ids: `[batch, seq]`.
            attention_mask: `[batch, tokens seen + seq]`.
            position_ids: `[batch, seq]`.
            past_key_values: a cache; without one each call starts afresh, unless a session is open.
            inputs_embeds: `[batch, seq, hidden]` instead of `input_ids`.
            labels: `[batch, seq]`, shifted by the loss itself; -100 is ignored.
            use_cache: return the cache.
            logits_to_keep: how many last positions, or which positions, get logits; 0 for all.
            update_memory: go on with the model's session (opening one if there is none) and keep what this call writes;
                otherwise an open session is only read, unless the call is inside `with model.new_sequence():`.
            **kwargs: passed on to the layers and the loss.
        """
        if past_key_values is None:
            inputs = input_ids if inputs_embeds is None else inputs_embeds
            past_key_values = self._session_cache(inputs, attention_mask, update_memory)
            if past_key_values is not None:
                use_cache, attention_mask = True, None
        for mixer in self._copying():
            mixer.found = None
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        assert hidden_states is not None
        logits = self.say(hidden_states, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def say(self, hidden_states: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        """Return the logits of the decoder's last hidden states, with what copying memories found in the same run.

        Args:
            hidden_states: `[batch, seq, hidden]`, all that the decoder returned.
            logits_to_keep: as in `forward`, or a mask `[batch, seq]`; the result is then `[positions, vocabulary]`.
        """
        logits: Tensor = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
        for mixer in self._copying():
            logits = mixer.say(logits, self.model.embed_tokens.weight, logits_to_keep)
        return logits

    def _copying(self) -> list[CopiedMemory]:
        return [layer.self_attn for layer in self.model.layers if isinstance(layer.self_attn, CopiedMemory)]

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        self.model.adopt(model_kwargs.get("past_key_values"))

    @contextmanager
    def memory_disabled(self) -> Iterator[None]:
        """Switch every memory off: window alone (gate), the base (add, copy), or that attention removed (alone)."""
        mixers: list[Any] = [
            mixer for mixer in self.modules() if isinstance(mixer, SenriMixer) and hasattr(mixer, "memory")
        ]
        before = [mixer.memory_enabled for mixer in mixers]
        for mixer in mixers:
            mixer.memory_enabled = False
        try:
            yield
        finally:
            for mixer, enabled in zip(mixers, before, strict=True):
                mixer.memory_enabled = enabled


class SenriForSequenceClassification(GenericForSequenceClassification, SenriPreTrainedModel):
    """The decoder with a head for whole sequences."""


class SenriForTokenClassification(GenericForTokenClassification, SenriPreTrainedModel):
    """The decoder with a head for tokens."""


class SenriForQuestionAnswering(GenericForQuestionAnswering, SenriPreTrainedModel):
    """The decoder with a head for answer spans."""
