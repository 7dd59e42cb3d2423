"""Softmax attention, untouched, plus a memory whose reads are said at the head: what was found is copied.

A read that is added to the hidden states must be heard by the layers above it, which never learnt to listen. Here no
layer hears it: what is written is each token's own code, the read is compared with the codes of all tokens, which gives
a distribution over the vocabulary, and that is mixed with the model's own by the read strength, as in a pointer
sentinel mixture (Merity et al. 2016, arXiv 1609.07843, equation 5) or an interpolation with nearest neighbours
(Khandelwal et al. 2020, arXiv 1911.00172, equation 3). Hidden states are those of the base, whatever the memory holds.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep

from senri.errors import SenriError
from senri.memory.branch import MemoryBranch
from senri.memory.token_codes import TokenCodes
from senri.mixers.added_memory import ReadStrength
from senri.mixers.branches import build_branch
from senri.mixers.context import MixerMasks
from senri.mixers.recall import let_pass, not_written_yet, recall
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


def given_values(mixer: nn.Module, embeddings: Tensor, ids: Tensor | None) -> tuple[Tensor, ...] | None:
    """Return what a layer's memory is given beside that: (v, ids) where it copies, None where it makes its own.

    Args:
        mixer: of the layer.
        embeddings: of the tokens, `[batch, seq, hidden]`.
        ids: of the tokens, `[batch, seq]`; None where only their embeddings are known.
    """
    return mixer.given(embeddings, ids) if isinstance(mixer, CopiedMemory) else None


class Found(NamedTuple):
    """What a memory read at each token, until the head says it.

    Attributes:
        read: `[batch, seq, heads x value_dim]`.
        strength: logits of the read strength, `[batch, seq, 1]`.
        seen: what the memory sees, `[batch, seq, width]`.
        shown: of `Saying.shown`, `[batch, seq, 1]` and `[batch, seq, late]`; None where the memory does not wait.
    """

    read: Tensor
    strength: Tensor
    seen: Tensor
    shown: tuple[Tensor, Tensor] | None

    def kept(self, logits_to_keep: int | Tensor) -> "Found":
        """Return what was found at some positions, as transformers' `slice_logits_to_keep` chooses them."""
        read, strength, seen = (slice_logits_to_keep(part, logits_to_keep) for part in self[:3])
        if self.shown is None:
            return Found(read, strength, seen, None)
        penalty, recent = (slice_logits_to_keep(part, logits_to_keep) for part in self.shown)
        return Found(read, strength, seen, (penalty, recent))


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
        self.memory_codes = TokenCodes(config.hidden_size, width, memory.copy_sharpness, scale, memory.copy_turns)
        waits = isinstance(self.memory, MemoryBranch) and memory.tokens_late > 0
        turns = memory.copy_turns > 1
        self.memory_say = Saying(memory.copy_prior, sizes["hidden_size"], width, config.end_token, waits, turns)
        self.found: Found | None = None

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
            given = self.given(masks.embeddings, masks.input_ids)
            seen = self.seen(hidden_states, masks.embeddings)
            recent = not_written_yet(self.memory, given[1], masks, past_key_values, self.layer_idx)
            read = recall(self.memory, seen, given, masks, past_key_values, self.layer_idx)
            seen = self.memory.inputs.seen(seen)
            strength = self.memory_read.logits(read, seen).mean(-1, keepdim=True)
            shown = None if recent is None else self.memory_say.shown(seen, recent)
            self.found = Found(read.flatten(2), strength, seen, shown)
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

    def given(self, embeddings: Tensor | None, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the memory is given of tokens with embeddings `[batch, seq, hidden]`: what is written of them,
        `[batch, heads, seq, value_dim]`, and which they are, `[batch, 1, seq, 1]`, -1 where `ids` are not known.

        Raises:
            SenriError: there are none.
        """
        if embeddings is None:
            raise SenriError(
                "a memory that copies writes tokens, but only hidden states were given: pass input_ids beside "
                "inputs_embeds where start_layer is above 0."
            )
        codes = self.memory_codes.codes(embeddings)
        values = codes.unflatten(-1, (self.memory.num_key_value_heads, -1)).transpose(1, 2)
        known = embeddings.new_full(embeddings.shape[:2], -1.0, dtype=torch.float32) if ids is None else ids.float()
        return values, known[:, None, :, None]

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
        found, self.found = self.found, None
        is_trained = any(parameter.requires_grad for parameter in self.memory.parameters())
        if torch.is_grad_enabled() and is_trained and not found.read.requires_grad:
            raise SenriError(
                "reentrant gradient checkpointing would lose the gradients of a memory that the head says: set "
                "gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        found = found.kept(logits_to_keep)
        alone = logits.float().log_softmax(-1)
        recent = None if found.shown is None else found.shown[1]
        said, read, behind = self.memory_codes(found.read, embeddings, recent)
        ending = self.memory_say.ending(found.seen, read)
        copied, strength = self.memory_say(said, alone, found.strength.float(), ending, found.shown, behind)
        return mixture(copied, alone, strength).to(logits.dtype)
