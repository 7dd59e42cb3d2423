"""Softmax attention, untouched, plus a memory whose reads are said at the head: what was found is copied.

A read that is added to the hidden states must be heard by the layers above it, which never learnt to listen. Here no
layer hears it: the read is compared with the codes of all tokens, which gives a distribution over the vocabulary, and
that is mixed with the model's own by the read strength, as in a pointer sentinel mixture (Merity et al. 2016, arXiv
1609.07843, equation 5) or an interpolation with nearest neighbours (Khandelwal et al. 2020, arXiv 1911.00172, equation
3). Hidden states are those of the base, whatever the memory holds.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep

from senri.errors import SenriError
from senri.mixers.added_memory import ReadStrength
from senri.mixers.branches import build_branch
from senri.mixers.context import MixerMasks
from senri.mixers.recall import let_pass, recall
from senri.mixers.softmax import SoftmaxAttention


class TokenCodes(nn.Module):
    """What the value of each token should look like in a read, as a linear map of its embedding.

    Args:
        hidden_size: of the embeddings.
        width: of a read: heads x value_dim.
        sharpness: at the start: factor of cosines in the softmax.
    """

    def __init__(self, hidden_size: int, width: int, sharpness: float) -> None:
        super().__init__()
        self.start = sharpness
        self.weight = nn.Parameter(torch.empty(width, hidden_size))
        self.sharpness = nn.Parameter(torch.empty(1))
        self._kept: tuple[Any, Tensor] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the map to zero, so that all tokens are alike, and the sharpness to its start."""
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.sharpness, self.start)

    @torch.no_grad()
    def initialise(self, embeddings: Tensor, values: Tensor, tokens: Tensor, ridge: float) -> None:
        """Solve the map from embeddings to values by least squares.

        Args:
            embeddings: of all tokens, `[vocabulary, hidden_size]`.
            values: as a read gives them, `[tokens, width]`.
            tokens: whose each is, `[tokens]`.
            ridge: share of the embeddings' mean square that is added to their Gram matrix.
        """
        x = (embeddings.double() - embeddings.double().mean(0))[tokens]
        gram = x.T @ x
        gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        y = values.double() - values.double().mean(0)
        self.weight.copy_(torch.linalg.solve(gram, x.T @ y).T)

    def forward(self, read: Tensor, embeddings: Tensor) -> Tensor:
        """Return log-probabilities of tokens, `[..., vocabulary]` in float32.

        Args:
            read: `[..., width]`.
            embeddings: of all tokens, `[vocabulary, hidden_size]`.
        """
        likeness = F.linear(F.normalize(read.float(), dim=-1), self.codes(embeddings))
        return (self.sharpness.float() * likeness).log_softmax(-1)

    def codes(self, embeddings: Tensor) -> Tensor:
        """Return the codes, of length one, `[vocabulary, width]` in float32; kept where nothing is learnt."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self.weight.requires_grad):
            return self._codes(embeddings)
        parts = (self.weight, embeddings)
        made_of = [(part.data_ptr(), part._version, part.dtype, part.device) for part in parts]
        if self._kept is None or self._kept[0] != made_of:
            self._kept = made_of, self._codes(embeddings).detach()
        return self._kept[1]

    def _codes(self, embeddings: Tensor) -> Tensor:
        embeddings = embeddings.detach().float()
        return F.normalize(F.linear(embeddings - embeddings.mean(0), self.weight.float()), dim=-1)


class CopiedMemory(SoftmaxAttention):
    """Copy mixer: attention alone goes on; `found` keeps what the memory read, until the head has said it."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx, sliding=config.layer_types[layer_idx] == "hybrid_sliding")
        sizes, memory = config.memory_sizes(layer_idx), config.memory_config_of(layer_idx)
        self.memory_enabled = True
        self.memory = build_branch(config, layer_idx)
        self.memory_read = ReadStrength(config.hidden_size, sizes["num_heads"], memory.read_strength)
        width = sizes["num_heads"] * sizes["value_dim"]
        self.memory_codes = TokenCodes(config.hidden_size, width, memory.copy_sharpness)
        self.found: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        hidden_states: Tensor,
        masks: MixerMasks,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix tokens `[batch, seq, hidden]` as the base's attention does."""
        if self.memory_enabled:
            read = recall(self.memory, hidden_states, None, masks, past_key_values, self.layer_idx)
            self.found = read.flatten(2), self.memory_read.logits(read, hidden_states).mean(-1)
        else:
            let_pass(hidden_states, past_key_values, self.layer_idx)
        return super().forward(hidden_states, masks, position_embeddings, past_key_values, **kwargs)

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
        copied = F.logsigmoid(strength) + self.memory_codes(read, embeddings)
        alone = F.logsigmoid(-strength) + logits.float().log_softmax(-1)
        return torch.logaddexp(copied, alone).to(logits.dtype)
