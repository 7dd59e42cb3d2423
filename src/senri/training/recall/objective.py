"""Recall: a text is read into the memory, questions are asked, and the tokens of their answers are the loss."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.mixers import CopiedMemory
from senri.mixers.cache_senri import SenriMemoryLayer, peek_cache
from senri.training.answers import AnswersOnly
from senri.training.recall.weighing import answer_weights, begins_answer
from senri.training.recall.window import Window


class Recall(AnswersOnly):
    """What the trainer runs: haystacks with their questions in, the loss of answers and of plain text out.

    The text is only written. Its last tokens are the window in which the questions are asked; the layers from the
    memory on run there and for the questions, all of them after the same text. Plain text that goes on behind the
    window is held to what the model predicts with its memory off: the memory stays silent where nobody asks.

    Args:
        *segments: of `SegmentedObjective`, for reading the text.
        kinds: names of the kinds of questions.
        first_weight: the first token of an answer counts so many times as much as each of the others.
        kl_weight: of the divergence in plain text beside the loss of the answers.
    """

    def __init__(self, *segments: Any, kinds: Sequence[str], first_weight: float, kl_weight: float) -> None:
        super().__init__(*segments)
        if any(isinstance(layer.self_attn, CopiedMemory) for layer in self.model.model.layers):
            raise SenriError(
                "the loss recall teaches the layers above a memory to hear it, but with memory.combine 'copy' none "
                "does: leave the stage out, or set its loss to finding."
            )
        self.kinds, self.first_weight, self.kl_weight = tuple(kinds), first_weight, kl_weight

    def forward(  # type: ignore[override]
        self,
        states: Tensor,
        ids: Tensor,
        window: Tensor,
        questions: Tensor,
        targets: Tensor,
        kinds: Tensor,
        going_on: Tensor,
    ) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and what else is worth knowing.

        `correct` is the share of right answer tokens, weighted as in the loss, `first` that of first tokens alone, and
        `correct_<kind>` that of one kind, over tokens; `divergence` is that of plain text; `length` that of the text.

        Args:
            states: `[1, seq, hidden]`, what enters `start_layer` in the text.
            ids: `[1, seq]`, its tokens.
            window: how many of these at the end the questions can attend to.
            questions: `[questions, tail]`, tokens of questions and answers.
            targets: `[questions, tail]`, the token that follows each, where it is asked for; else -100.
            kinds: `[questions]`, what each asks for, as its place in `self.kinds`.
            going_on: `[1, more, hidden]`, what enters `start_layer` in the plain text that goes on.
        """
        length, near = ids.shape[1], int(window)
        far = length - near
        memories: Any = self.read(ids[:, :far], torch.tensor([far], device=ids.device), states[:, :far])
        read = Window(self.model, ids[:, far:], self.start_layer, states[:, far:])
        heard: Any = read.upper(memories)
        written: Any = self._segment(ids[:, far:], states[:, far:], None, memories)
        for old, new in zip(written.layers, heard.layers, strict=True):
            if isinstance(new, SenriMemoryLayer):
                new.memory_state = old.memory_state  # the same, with its gradients
        loss, found = self._divergence(read, peek_cache(heard), going_on)
        heard.batch_repeat_interleave(len(questions))
        hidden = self._run(read.lower(questions), read, heard)
        row, column = (targets >= 0).nonzero(as_tuple=True)
        logits = self.model.lm_head(hidden[row, column]).float()
        wanted, asked = targets[row, column], kinds[row]
        share = answer_weights(row, self.first_weight)
        share = share / share.sum()
        loss = loss + (share * F.cross_entropy(logits, wanted, reduction="none")).sum()
        is_right = (logits.argmax(-1) == wanted).float()
        found |= {"length": torch.tensor(float(length)), "correct": (share * is_right).sum()}
        found["first"] = is_right[begins_answer(row)].mean()
        found |= {f"correct_{self.kinds[kind]}": is_right[asked == kind].mean() for kind in asked.unique().tolist()}
        return {"loss": loss, **found}

    def _divergence(self, read: Window, heard: Any, going_on: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of plain text behind the window, and the divergence."""
        with torch.no_grad(), self.model.memory_disabled():
            alone = self.model.lm_head(self._run(going_on, read, read.upper())[0]).float().log_softmax(-1)
        logits = self.model.lm_head(self._run(going_on, read, heard)[0]).float()
        divergence = F.kl_div(logits.log_softmax(-1), alone, reduction="batchmean", log_target=True)
        return self.kl_weight * divergence, {"divergence": divergence.detach()}

    def _run(self, states: Tensor, read: Window, cache: Any) -> Tensor:
        """Run the layers from `start_layer` on behind the window; `[rows, tail, hidden]` before the head."""
        positions = read.positions_behind(*states.shape[:2])
        run = {"start_layer": self.start_layer, "past_key_values": cache, "use_cache": True}
        out = self.model.model(inputs_embeds=states, position_ids=positions, **run)
        hidden: Tensor = out.last_hidden_state
        return hidden
