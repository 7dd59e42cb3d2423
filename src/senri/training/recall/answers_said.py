"""What is said at the tokens that are asked for: by the model alone, and with what a memory found, as in use."""

from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from senri.memory.turns import are_among
from senri.mixers import AddedMemory, CopiedMemory, mixture
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.recall.pointing import NOWHERE

_TOGETHER = 16
"""Tokens that are mixed together. What each takes is many times as large as the vocabulary, so it is not kept for the
gradient but made again, for so few that it stays in a processor's cache."""


class AnswersSaid:
    """Says tokens of answers, given what a memory sees and reads there.

    Args:
        model: whose head says them.
        mixer: with the memory.
    """

    def __init__(self, model: SenriForCausalLM, mixer: AddedMemory | CopiedMemory) -> None:
        self._model, self._mixer = model, mixer

    @torch.no_grad()
    def alone(self, outputs: Tensor) -> Tensor:
        """Return log-probabilities of what the model without memory says, `[tokens, vocabulary]`.

        Args:
            outputs: what it has for the head, `[tokens, hidden]`.
        """
        alone: Tensor = self._model.lm_head(outputs).float().log_softmax(-1)
        return alone

    def shown(
        self, asking_ids: Tensor, before: Tensor, seen: Tensor, row: Tensor, column: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the penalty `[tokens, 1]` of tokens that the window shows, as far as they would not be written yet,
        and these, `[tokens, late]`; None for a memory that knows no tokens or does not wait.

        Args:
            asking_ids: tokens of questions and answers, `[questions, tail]`.
            before: those that stand before them, `[questions, window]`, -1 for none.
            seen: what the memory sees there, `[questions, tail, width]`.
            row: the question of each token that is asked for, `[tokens]`.
            column: its place there, `[tokens]`.
        """
        branch: Any = self._mixer.memory
        if not isinstance(self._mixer, CopiedMemory) or self._mixer.memory_say.repetition is None:
            return None
        ids = torch.cat([before[:, -branch.config.tokens_late :], asking_ids], dim=1)
        start = branch.inputs.init_state(1, ids.device)
        recent = branch.inputs.recent(ids[:, None, :, None].float(), start)[:, -asking_ids.shape[1] :]
        return self._mixer.memory_say.shown(branch.inputs.seen(seen[row, column]), recent[row, column])

    def copied(
        self, seen: Tensor, read: Tensor, shown: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """Return log-probabilities of what was read, `[tokens, vocabulary]`, logits of the end's share, `[tokens, 1]`,
        or None where nothing ends, and what stands behind tokens that are shown, of `TokenCodes`; None for a memory
        that copies no tokens.

        Args:
            seen: what the memory sees, `[tokens, width]`.
            read: what it read, `[tokens, heads x value_dim]`.
            shown: of `shown`.
        """
        if not isinstance(self._mixer, CopiedMemory):
            return None
        branch: Any = self._mixer.memory
        recent = None if shown is None else shown[1]
        said, back, behind = self._mixer.memory_codes(read, self._model.model.embed_tokens.weight, recent)
        return said, self._mixer.memory_say.ending(branch.inputs.seen(seen), back), behind

    def mixed(
        self,
        copied: tuple[Tensor, Tensor | None, Tensor | None] | None,
        pointed: Tensor,
        wanted: Tensor,
        alone: Tensor,
        strengths: Tensor,
        shown: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Return log-probabilities of the right tokens, `[tokens]`, where what was found is mixed with what the model
        says.

        Args:
            copied: of `copied`.
            pointed: log-probabilities of the right tokens by the pointer, `[tokens]`.
            wanted: the right tokens.
            alone: of `alone`.
            strengths: logits of the read strength, `[tokens]`.
            shown: of `shown`.
        """
        if copied is None:
            return mixture(pointed, alone.gather(1, wanted[:, None])[:, 0], strengths)
        told, ending, behind = copied
        parts = (told, alone, strengths[:, None], ending, behind, wanted[:, None], *(shown or (None, None)))
        pieces = (repeat(None) if part is None else part.split(_TOGETHER) for part in parts)
        some = [checkpoint(self._mixed, *piece, use_reentrant=False) for piece in zip(*pieces, strict=False)]
        return torch.cat(cast(list[Tensor], some))

    def _mixed(
        self,
        told: Tensor,
        alone: Tensor,
        strengths: Tensor,
        ending: Tensor | None,
        behind: Tensor | None,
        wanted: Tensor,
        penalty: Tensor | None,
        recent: Tensor | None,
    ) -> Tensor:
        shown = None if penalty is None or recent is None else (penalty, recent)
        said, share = cast(CopiedMemory, self._mixer).memory_say(told, alone, strengths, ending, shown, behind)
        pointed = said.gather(1, wanted)[:, 0].clamp(min=NOWHERE)
        return mixture(pointed, alone.gather(1, wanted)[:, 0], share[:, 0])


@torch.no_grad()
def likely(alone: Tensor, shown: tuple[Tensor, Tensor] | None, candidates: Tensor, prior: float) -> Tensor:
    """Return what a pointer adds to the logits of candidates, by their token: `[tokens, candidates]`.

    Args:
        alone: of `AnswersSaid.alone`.
        shown: of `AnswersSaid.shown`.
        candidates: tokens.
        prior: power of what the model alone says.
    """
    added = prior * alone[:, candidates]
    if shown is None:
        return added
    penalty, recent = shown
    return added - penalty * are_among(recent, alone.shape[-1])[:, candidates]
