"""Finding: does a query meet its key? Learnt where the memory is read, without running the layers above it.

What a read found is known without asking the model: the read is compared with the values of all tokens of the text.
The shares of a softmax over these likenesses are a pointer to the text (Vinyals et al. 2015, arXiv 1506.03134), and the
tokens that it points to are a distribution over the next token. It is mixed with what the model says without a memory
by the read strength (pointer sentinel mixture, Merity et al. 2016, arXiv 1609.07843, equation 5), so that the strength
learns to be what it is for: how far the memory knows better.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.mixers import AddedMemory, CopiedMemory, given_values
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.objective import Objective
from senri.training.recall.values import check_branch
from senri.training.recall.weighing import answer_shares, begins_answer

_NOWHERE = -50.0
"""Log-probability of a token that the pointer gives nothing to."""


class Finding(Objective):
    """What the trainer runs: haystacks with their questions in, the loss of pointers and of the mixture out.

    Args:
        model: a Senri model with one memory, which must be added to the layer's attention.
        start_layer: the memory's layer.
        sharpness: factor of cosines in the pointer's softmax.
        kinds: names of the kinds of questions.
        first_share: of an answer's weight, so much goes to its first token.

    Raises:
        SenriError: a memory of another kind, or several.
    """

    def __init__(
        self, model: SenriForCausalLM, start_layer: int, sharpness: float, kinds: tuple[str, ...], first_share: float
    ) -> None:
        super().__init__(model)
        check_branch(model, start_layer, "finding", AddedMemory, CopiedMemory)
        if not hasattr(model.model.layers[start_layer].self_attn, "memory_read"):
            raise SenriError("the loss finding teaches a read strength: set memory.learned_read_strength to true.")
        self.start_layer, self.sharpness = start_layer, sharpness
        self.kinds, self.first_share = kinds, first_share

    def forward(
        self,
        states: Tensor,
        ids: Tensor,
        asking: Tensor,
        asking_ids: Tensor,
        targets: Tensor,
        points: Tensor,
        said: Tensor,
        kinds: Tensor,
    ) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and what else is worth knowing.

        `correct` is the share of answer tokens at whose token the pointer points most, weighted as in the loss; `first`
        is that of first tokens alone, `correct_<kind>` that of one kind, over tokens; `asked` and `text` are mean read
        strengths before answers and in plain text; `length` is that of the text. A token that the text does not hold
        counts nowhere but in plain text.

        Args:
            states: `[1, seq, hidden]`, what enters `start_layer` in the text.
            ids: `[1, seq]`, its tokens.
            asking: `[questions, tail, hidden]`, what enters `start_layer` in questions and answers.
            asking_ids: `[questions, tail]`, their tokens.
            targets: `[questions, tail]`, the token that follows each, where it is asked for; else -100.
            points: `[questions, tail]`, where that token stands in the text, or -1.
            said: `[questions, tail]`, log-probability that the model without memory gives that token.
            kinds: `[questions]`, what each asks for, as its place in `self.kinds`; -1 for plain text that goes on.
        """
        read, strengths = self.read(states, ids, asking, asking_ids)
        row, column = (targets >= 0).nonzero(as_tuple=True)
        wanted, alone = targets[row, column], said[row, column]
        places = torch.arange(ids.shape[1], device=ids.device)
        is_right = (ids[0] == wanted[:, None]) | (places == points[row, column][:, None])
        if isinstance(self._mixer, CopiedMemory):
            pointer = self._mixer.memory_codes(read[row, column], self.model.model.embed_tokens.weight)
            pointed = pointer.gather(1, wanted[:, None])[:, 0].clamp(min=_NOWHERE)
            correct = (pointer.argmax(-1) == wanted).float()
        else:
            values = self.values(states[0])
            values = F.normalize(values - values.mean(0), dim=-1)
            likeness = self.sharpness * F.normalize(read[row, column].float(), dim=-1) @ values.T
            pointed = likeness.log_softmax(-1).masked_fill(~is_right, 2 * _NOWHERE).logsumexp(-1).clamp(min=_NOWHERE)
            correct = is_right.gather(1, likeness.argmax(-1, keepdim=True))[:, 0].float()
        logits = strengths[row, column].float()
        mixture = torch.logaddexp(F.logsigmoid(logits) + pointed, F.logsigmoid(-logits) + alone)
        is_text = kinds[row] < 0
        is_asked = ~is_text & is_right.any(-1)
        share = answer_shares(row, self.first_share, is_text)
        finding = -(share * pointed * is_asked).sum() / (share * is_asked).sum().clamp(min=1e-6)
        loss = finding - (share * mixture * (is_text | is_asked)).sum() / len(targets)
        strength = logits.detach().sigmoid()
        found = {"length": torch.tensor(float(ids.shape[1]))}
        if bool(is_asked.any()):
            found["correct"] = (share * correct)[is_asked].sum() / share[is_asked].sum()
            found["first"] = correct[is_asked & begins_answer(row)].mean()
            found["asked"] = strength[is_asked].mean()
            kind_of = kinds[row][is_asked]
            found |= {
                f"correct_{self.kinds[k]}": correct[is_asked][kind_of == k].mean() for k in kind_of.unique().tolist()
            }
        if bool(is_text.any()):
            found["text"] = strength[is_text].mean()
        return {"loss": loss, **found}

    def read(self, states: Tensor, ids: Tensor, asking: Tensor, asking_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Write a text, then read (and write) each question after it.

        Returns:
            The reads `[questions, tail, heads x value_dim]`; the logits of the read strength `[questions, tail]`, the
            mean over heads.
        """
        layer: Any = self.model.model.layers[self.start_layer]
        branch: Any = self._mixer.memory
        text, tail = layer.input_layernorm(states), layer.input_layernorm(asking)
        state = branch.write(text, branch.init_state(1, text.device), self._given(ids))
        state = {name: part.expand(len(tail), *part.shape[1:]) for name, part in state.items()}
        read = branch(tail, state, self._given(asking_ids))[0].transpose(1, 2)
        return read.flatten(2), self._mixer.memory_read.logits(read, tail).mean(-1)

    def _given(self, ids: Tensor) -> tuple[Tensor, ...] | None:
        return given_values(self._mixer, self.model.model.embed_tokens(ids))

    @torch.no_grad()
    def values(self, states: Tensor) -> Tensor:
        """Return the values of tokens as a read gives them, `[seq, heads x value_dim]`.

        Args:
            states: what enters `start_layer`, `[seq, hidden]`.
        """
        branch: Any = self._mixer.memory
        layer: Any = self.model.model.layers[self.start_layer]
        values = branch.inputs.v_proj(branch.inputs.seen(layer.input_layernorm(states))).float()
        values = values.unflatten(-1, (branch.num_key_value_heads, -1))
        values = values.repeat_interleave(branch.num_heads // branch.num_key_value_heads, dim=1)
        return cast(Tensor, (values * branch.memory.norm_weight.float()).flatten(1))

    @property
    def _mixer(self) -> AddedMemory | CopiedMemory:
        mixer: Any = self.model.model.layers[self.start_layer].self_attn
        return cast(AddedMemory | CopiedMemory, mixer)
