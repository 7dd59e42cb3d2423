"""Softmax attention, untouched, plus a memory whose reads are said at the head: what was found is copied.

A read that is added to the hidden states must be heard by the layers above it, which never learnt to listen. Here no
layer hears it: what is written is each token's own code, the read is compared with the codes of all tokens, which gives
a distribution over the vocabulary, and that is mixed with the model's own by the read strength, as in a pointer
sentinel mixture (Merity et al. 2016, arXiv 1609.07843, equation 5) or an interpolation with nearest neighbours
(Khandelwal et al. 2020, arXiv 1911.00172, equation 3). Hidden states are those of the base, whatever the memory holds.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep

from senri.errors import SenriError
from senri.memory.token_codes import TokenCodes
from senri.mixers.added_memory import ReadStrength
from senri.mixers.branches import build_branch
from senri.mixers.context import MixerMasks
from senri.mixers.recall import let_pass, recall
from senri.mixers.saying import Saying, mixture
from senri.mixers.softmax import SoftmaxAttention


def seen_by_memory(mixer: nn.Module, hidden_states: Tensor, embeddings: Tensor) -> Tensor:
    """Return what a layer's memory sees of tokens, `[batch, seq, width]`.

    Args:
        mixer: of the layer.
        hidden_states: the mixer's input, `[batch, seq, hidden]`.
        embeddings: of the tokens, likewise.
    """
    return mixer.seen(hidden_states, embeddings) if isinstance(mixer, CopiedMemory) else hidden_states


def given_values(mixer: nn.Module, embeddings: Tensor) -> tuple[Tensor, ...] | None:
    """Return what a layer's memory is given beside that: (v,) where it copies, None where it makes its own.

    Args:
        mixer: of the layer.
        embeddings: of the tokens, `[batch, seq, hidden]`.
    """
    return (mixer.values(embeddings),) if isinstance(mixer, CopiedMemory) else None


class CopiedMemory(SoftmaxAttention):
    """Copy mixer: attention alone goes on; `found` keeps what the memory read, until the head has said it."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx, sliding=config.layer_types[layer_idx] == "hybrid_sliding")
        sizes, memory = config.memory_sizes(layer_idx), config.memory_config_of(layer_idx)
        if sizes["num_heads"] != sizes["num_key_value_heads"]:
            raise SenriError(
                f"memory.combine 'copy' gives each head its part of a token's code: set memory.num_key_value_heads to "
                f"memory.num_heads, {sizes['num_heads']}."
            )
        self.memory_enabled = True
        self.memory = build_branch(config, layer_idx)
        self.memory_read = ReadStrength(sizes["hidden_size"], sizes["num_heads"], memory.read_strength)
        width = sizes["num_heads"] * sizes["value_dim"]
        scale = config.initializer_range
        self.memory_codes = TokenCodes(config.hidden_size, width, memory.copy_sharpness, scale)
        self.memory_say = Saying(memory.copy_prior)
        self.found: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        hidden_states: Tensor,
        masks: MixerMasks,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix tokens `[batch, seq, hidden]` as the base's attention does.

        Raises:
            SenriError: a stretch of layers runs without the tokens' embeddings.
        """
        if self.memory_enabled:
            values = (self.values(masks.embeddings),)
            seen = self.seen(hidden_states, masks.embeddings)
            read = recall(self.memory, seen, values, masks, past_key_values, self.layer_idx)
            self.found = read.flatten(2), self.memory_read.logits(read, self.memory.inputs.seen(seen)).mean(-1)
        else:
            let_pass(hidden_states, past_key_values, self.layer_idx)
        return super().forward(hidden_states, masks, position_embeddings, past_key_values, **kwargs)

    def seen(self, hidden_states: Tensor, embeddings: Tensor | None) -> Tensor:
        """Return what the memory sees of tokens `[batch, seq, hidden]`: `[batch, seq, width]`.

        A hidden state is about what comes next more than about the token itself. The embedding says which token it is,
        in a question as in a text.
        """
        if not self.memory.config.token_inputs:
            return hidden_states
        assert embeddings is not None  # said in `values`
        return torch.cat([hidden_states, embeddings.to(hidden_states.dtype)], dim=-1)

    def values(self, embeddings: Tensor | None) -> Tensor:
        """Return what is written of tokens with embeddings `[batch, seq, hidden]`: `[batch, heads, seq, value_dim]`.

        Raises:
            SenriError: there are none.
        """
        if embeddings is None:
            raise SenriError(
                "a memory that copies writes tokens, but only hidden states were given: pass input_ids beside "
                "inputs_embeds where start_layer is above 0."
            )
        codes = self.memory_codes.codes(embeddings)
        values: Tensor = codes.unflatten(-1, (self.memory.num_key_value_heads, -1)).transpose(1, 2)
        return values

    def say(self, logits: Tensor, embeddings: Tensor, logits_to_keep: int | Tensor) -> Tensor:
        """Mix what was found into the model's logits, and forget it.

        Args:
            logits: `[batch, positions, vocabulary]`; `[positions, vocabulary]` where a mask chose them.
            embeddings: of all tokens, `[vocabulary, hidden_size]`.
            logits_to_keep: which positions these are, as in transformers' `slice_logits_to_keep`.

        Returns:
            Log-probabilities in the dtype of the logits; the logits as they are where nothing was read.

        Raises:
            SenriError: the memory's gradients would be lost.
        """
        if self.found is None:
            return logits
        (read, strength), self.found = self.found, None
        is_trained = any(parameter.requires_grad for parameter in self.memory.parameters())
        if torch.is_grad_enabled() and is_trained and not read.requires_grad:
            raise SenriError(
                "reentrant gradient checkpointing would lose the gradients of a memory that the head says: set "
                "gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        read = slice_logits_to_keep(read, logits_to_keep)
        strength = slice_logits_to_keep(strength.float().unsqueeze(-1), logits_to_keep)
        alone = logits.float().log_softmax(-1)
        copied, strength = self.memory_say(self.memory_codes(read, embeddings), alone, strength)
        return mixture(copied, alone, strength).to(logits.dtype)
