"""Recall: a text is read into the memory, a question is asked, and the answer's tokens are the loss."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.training.answers import AnswersOnly


class Recall(AnswersOnly):
    """What the trainer runs: batches of `RecallBatches` in, the loss of answers and of plain text out.

    Plain text is held to what the model predicts with its memory off: the memory stays silent where nobody asks.

    Args:
        *segments: of `SegmentedObjective`, for reading the text.
        kinds: names of the kinds of facts.
    """

    def __init__(self, *segments: Any, kinds: Sequence[str]) -> None:
        super().__init__(*segments)
        self.kinds = tuple(kinds)

    def forward(  # type: ignore[override]
        self,
        states: Tensor,
        lengths: Tensor,
        tail_ids: Tensor,
        is_answer: Tensor,
        is_text: Tensor,
        kinds: Tensor,
        kl_weight: Tensor,
    ) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and what else is worth knowing.

        `correct` is the share of right answer tokens, the mean over questions, and `correct_<kind>` that of one kind of
        facts, over tokens; `divergence` is that of plain text; `length` the mean length of the texts.

        Args:
            states: `[batch, seq, hidden]`, what enters `start_layer` in each text, zeros behind its end.
            lengths: `[batch]`, tokens of each text.
            tail_ids: `[batch, tail]`, what follows it, in an empty window.
            is_answer: `[batch, tail]`, which of these are answers.
            is_text: `[batch, tail]`, which of these are plain text.
            kinds: `[batch]`, the kind of the fact that is asked for, as its place in `self.kinds`; -1 in plain text.
            kl_weight: scalar, of the divergence in plain text beside the loss of the answers.
        """
        memory = self.read(tail_ids.new_zeros(states.shape[:2]), lengths, states)
        positions = lengths[:, None] + torch.arange(tail_ids.shape[1], device=tail_ids.device)
        hidden = self.model.model(
            tail_ids, position_ids=positions, past_key_values=memory, use_cache=True
        ).last_hidden_state[:, :-1]
        before_answer, before_text = is_answer[:, 1:], is_text[:, 1:]
        found = {"length": lengths.float().mean()}
        loss = hidden.new_zeros(())
        if bool(before_answer.any()):
            logits = self.model.lm_head(hidden[before_answer]).float()
            targets = tail_ids[:, 1:][before_answer]
            # Every question counts the same, however long its answer.
            row = before_answer.nonzero()[:, 0]
            share = 1 / before_answer.sum(1).float()[row] / before_answer.any(1).sum()
            loss = loss + (share * F.cross_entropy(logits, targets, reduction="none")).sum()
            is_right = (logits.argmax(-1) == targets).float()
            found["correct"] = (share * is_right).sum()
            asked = kinds[row]
            found |= {f"correct_{self.kinds[kind]}": is_right[asked == kind].mean() for kind in asked.unique().tolist()}
        if bool(before_text.any()):
            rows = is_text.any(dim=1)
            with torch.no_grad(), self.model.memory_disabled():
                alone = self.model.model(tail_ids[rows], position_ids=positions[rows], use_cache=False)
                wanted = self.model.lm_head(alone.last_hidden_state[:, :-1][before_text[rows]]).float()
            logits = self.model.lm_head(hidden[before_text]).float()
            divergence = F.kl_div(
                logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True
            )
            loss = loss + kl_weight * divergence
            found["divergence"] = divergence.detach()
        return {"loss": loss, **found}
