"""Recall: a text is read into the memory, questions are asked, and the tokens of their answers are the loss."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.training.answers import AnswersOnly


class Recall(AnswersOnly):
    """What the trainer runs: haystacks with their questions in, the loss of answers and of plain text out.

    The text is only written. The layers from the memory on run for the questions, all of them after the same text.
    Plain text is held to what the model predicts with its memory off: the memory stays silent where nobody asks.

    Args:
        *segments: of `SegmentedObjective`, for reading the text.
        kinds: names of the kinds of questions.
        kl_weight: of the divergence in plain text beside the loss of the answers.
    """

    def __init__(self, *segments: Any, kinds: Sequence[str], kl_weight: float) -> None:
        super().__init__(*segments)
        self.kinds, self.kl_weight = tuple(kinds), kl_weight

    def forward(  # type: ignore[override]
        self, states: Tensor, ids: Tensor, asking: Tensor, targets: Tensor, kinds: Tensor, **_: Tensor
    ) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and what else is worth knowing.

        `correct` is the share of right answer tokens, the mean over questions, and `correct_<kind>` that of one kind,
        over tokens; `divergence` is that of plain text; `length` that of the text.

        Args:
            states: `[1, seq, hidden]`, what enters `start_layer` in the text.
            ids: `[1, seq]`, its tokens.
            asking: `[questions, tail, hidden]`, what enters `start_layer` in questions and answers, after no window.
            targets: `[questions, tail]`, the token that follows each, where it is asked for; else -100.
            kinds: `[questions]`, what each asks for, as its place in `self.kinds`; -1 for plain text that goes on.
            **_: what only other losses need.
        """
        length = ids.shape[1]
        memory = self.read(ids, torch.tensor([length], device=ids.device), states)
        memory.batch_repeat_interleave(len(asking))
        positions = (length + torch.arange(asking.shape[1], device=ids.device)).expand(len(asking), -1)
        hidden = self._run(asking, positions, past_key_values=memory, use_cache=True)
        is_text = kinds < 0
        row, column = ((targets >= 0) & ~is_text[:, None]).nonzero(as_tuple=True)
        found = {"length": torch.tensor(float(length))}
        loss = hidden.new_zeros(())
        if len(row):
            logits = self.model.lm_head(hidden[row, column]).float()
            wanted = targets[row, column]
            # Every question counts the same, however long its answer.
            share = 1 / torch.bincount(row, minlength=len(targets))[row].float() / (~is_text).sum()
            loss = loss + (share * F.cross_entropy(logits, wanted, reduction="none")).sum()
            is_right = (logits.argmax(-1) == wanted).float()
            found["correct"] = (share * is_right).sum()
            asked = kinds[row]
            found |= {f"correct_{self.kinds[kind]}": is_right[asked == kind].mean() for kind in asked.unique().tolist()}
        if bool(is_text.any()):
            before = targets[is_text] >= 0
            with torch.no_grad(), self.model.memory_disabled():
                alone = self._run(asking[is_text], positions[is_text], use_cache=False)
                said = self.model.lm_head(alone[before]).float().log_softmax(-1)
            logits = self.model.lm_head(hidden[is_text][before]).float()
            divergence = F.kl_div(logits.log_softmax(-1), said, reduction="batchmean", log_target=True)
            loss = loss + self.kl_weight * divergence
            found["divergence"] = divergence.detach()
        return {"loss": loss, **found}

    def _run(self, states: Tensor, positions: Tensor, **cache: Any) -> Tensor:
        """Run the layers from `start_layer` on; `[questions, tail, hidden]` before the head."""
        out = self.model.model(inputs_embeds=states, start_layer=self.start_layer, position_ids=positions, **cache)
        hidden: Tensor = out.last_hidden_state
        return hidden
