"""Recall: a text is read into the memory, a question is asked, and the answer's tokens are the loss."""

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
        kl_weight: of the divergence in plain text.
    """

    def __init__(self, *segments: Any, kl_weight: float) -> None:
        super().__init__(*segments)
        self.kl_weight = kl_weight

    def forward(  # type: ignore[override]
        self, states: Tensor, lengths: Tensor, tail_ids: Tensor, is_answer: Tensor, is_text: Tensor
    ) -> dict[str, Tensor]:
        """Return `loss`, a scalar; `correct`, the share of right answer tokens; `divergence`; the mean `length`.

        Args:
            states: `[batch, seq, hidden]`, what enters `start_layer` in each text, zeros behind its end.
            lengths: `[batch]`, tokens of each text.
            tail_ids: `[batch, tail]`, what follows it, in an empty window.
            is_answer: `[batch, tail]`, which of these are answers.
            is_text: `[batch, tail]`, which of these are plain text.
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
            loss = loss + F.cross_entropy(logits, targets)
            found["correct"] = (logits.argmax(-1) == targets).float().mean().detach()
        if self.kl_weight and bool(before_text.any()):
            rows = is_text.any(dim=1)
            with torch.no_grad(), self.model.memory_disabled():
                alone = self.model.model(tail_ids[rows], position_ids=positions[rows], use_cache=False)
                wanted = self.model.lm_head(alone.last_hidden_state[:, :-1][before_text[rows]]).float()
            logits = self.model.lm_head(hidden[before_text]).float()
            divergence = F.kl_div(
                logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True
            )
            loss = loss + self.kl_weight * divergence
            found["divergence"] = divergence.detach()
        return {"loss": loss, **found}
