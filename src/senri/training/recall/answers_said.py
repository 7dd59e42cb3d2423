"""What is said at the tokens that are asked for: by the model alone, and with what a memory found, as in use."""

from typing import Any, cast

import torch
from torch import Tensor

from senri.memory.turns import are_among
from senri.mixers import AddedMemory, CopiedMemory, mixture
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.recall.pointing import NOWHERE


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
        if copied is not None:
            mixer = cast(CopiedMemory, self._mixer)
            told, ending, behind = copied
            said, share = mixer.memory_say(told, alone, strengths[:, None], ending, shown, behind)
            pointed, strengths = said.gather(1, wanted[:, None])[:, 0].clamp(min=NOWHERE), share[:, 0]
        return mixture(pointed, alone.gather(1, wanted[:, None])[:, 0], strengths)


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
