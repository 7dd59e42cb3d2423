"""Finding: does a query meet its key? Learnt where the memory is read, without running the layers above it.

What a read found is known without asking the model: the read is compared with the values of all tokens of the text.
The shares of a softmax over these likenesses are a pointer to the text (Vinyals et al. 2015, arXiv 1506.03134), and the
tokens that it points to are a distribution over the next token. It is mixed with what the model says without a memory
by the read strength (pointer sentinel mixture, Merity et al. 2016, arXiv 1609.07843, equation 5), so that the strength
learns to be what it is for: how far the memory knows better.

Where the right key is, is known as well: of all keys of the text, that of the token to be said should be the most like
the query (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748, equation 4). This says of every key that is in the way
which one it is, however little of it a read shows. Many facts of one kind in one text are what it learns most from.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.features import apply_feature_map
from senri.mixers import AddedMemory, CopiedMemory, given_values, mixture
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.objective import Objective
from senri.training.recall.config import FindingConfig
from senri.training.recall.values import check_branch
from senri.training.recall.weighing import answer_shares, begins_answer

_NOWHERE = -50.0
"""Log-probability of a token that the pointer gives nothing to."""


@dataclass(frozen=True)
class WrittenText:
    """What a memory made of a text.

    Attributes:
        keys: of its tokens, the first one's first, `[key heads, seq, key_dim]`; those of the last ones are missing that
            a memory which waits has not written yet.
        state: behind it.
    """

    keys: Tensor
    state: LayerState


class Finding(Objective):
    """What the trainer runs: haystacks with their questions in, the loss of pointers and of the mixture out.

    Args:
        model: a Senri model with one memory, which must be added to the layer's attention.
        start_layer: the memory's layer.
        config: of this loss.
        kinds: names of the kinds of questions.
        first_share: of an answer's weight, so much goes to its first token.

    Raises:
        SenriError: a memory of another kind, or several.
    """

    def __init__(
        self,
        model: SenriForCausalLM,
        start_layer: int,
        config: FindingConfig,
        kinds: tuple[str, ...],
        first_share: float,
    ) -> None:
        super().__init__(model)
        check_branch(model, start_layer, "finding", AddedMemory, CopiedMemory)
        if not hasattr(model.model.layers[start_layer].self_attn, "memory_read"):
            raise SenriError("the loss finding teaches a read strength: set memory.learned_read_strength to true.")
        self.start_layer, self.settings = start_layer, config
        self.kinds, self.first_share = kinds, first_share

    def forward(
        self,
        states: Tensor,
        ids: Tensor,
        asking: Tensor,
        targets: Tensor,
        points: Tensor,
        outputs: Tensor,
        kinds: Tensor,
        meeting_alone: Tensor,
    ) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and what else is worth knowing.

        `correct` is the share of answer tokens at whose token the pointer points most, weighted as in the loss; `first`
        is that of first tokens alone, `correct_<kind>` that of one kind, over tokens; `asked` and `text` are mean read
        strengths before answers and in plain text; `met` is the share of answer tokens whose query is most like their
        own key; `length` is that of the text. A token that the text does not hold counts nowhere but in plain text.

        Args:
            states: `[1, seq, hidden]`, what enters `start_layer` in the text.
            ids: `[1, seq]`, its tokens.
            asking: `[questions, tail, hidden]`, what enters `start_layer` in questions and answers.
            targets: `[questions, tail]`, the token that follows each, where it is asked for; else -100.
            points: `[questions, tail]`, where that token stands in the text, or -1.
            outputs: `[questions, tail, hidden]`, what the model without memory has there for the head.
            kinds: `[questions]`, what each asks for, as its place in `self.kinds`; -1 for plain text that goes on.
            meeting_alone: whether queries only learn to meet their keys, without a memory: `loss`, `met` and `length`.
        """
        row, column = (targets >= 0).nonzero(as_tuple=True)
        share = answer_shares(row, self.first_share, is_text := kinds[row] < 0)
        found = {"length": torch.tensor(float(ids.shape[1]))}
        if meeting_alone:
            tokens, past = self._inputs(states, ids)
            queries = self._queries(asking, past)
            meeting, met = self._meeting(queries[row, :, column], self._keys(tokens), points[row, column], share)
            return {"loss": meeting, "met": met, **found}
        text = self.write(states, ids)
        queries, read, strengths = self.read(asking, text)
        wanted, strengths = targets[row, column], strengths[row, column].float()
        with torch.no_grad():
            alone = self.model.lm_head(outputs[row, column]).float().log_softmax(-1)
        places = torch.arange(ids.shape[1], device=ids.device)
        is_right = (ids[0] == wanted[:, None]) | (places == points[row, column][:, None])
        if isinstance(self._mixer, CopiedMemory):
            pointer = self._mixer.memory_codes(read[row, column], self.model.model.embed_tokens.weight)
            pointer, strength = self._mixer.memory_say(pointer, alone, strengths[:, None])
            pointed, strengths = pointer.gather(1, wanted[:, None])[:, 0].clamp(min=_NOWHERE), strength[:, 0]
            correct = (pointer.argmax(-1) == wanted).float()
        else:
            values = self.values(states[0])
            values = F.normalize(values - values.mean(0), dim=-1)
            likeness = self.settings.sharpness * F.normalize(read[row, column].float(), dim=-1) @ values.T
            pointed = likeness.log_softmax(-1).masked_fill(~is_right, 2 * _NOWHERE).logsumexp(-1).clamp(min=_NOWHERE)
            correct = is_right.gather(1, likeness.argmax(-1, keepdim=True))[:, 0].float()
        mixed = mixture(pointed, alone.gather(1, wanted[:, None])[:, 0], strengths)
        is_asked = ~is_text & is_right.any(-1)
        finding = -(share * pointed * is_asked).sum() / (share * is_asked).sum().clamp(min=1e-6)
        loss = finding - (share * mixed * (is_text | is_asked)).sum() / len(targets)
        meeting, met = self._meeting(queries[row, :, column], text.keys, points[row, column], share)
        loss = loss + self.settings.meeting * meeting
        strength = strengths.detach().sigmoid()
        if bool(is_asked.any()):
            found["correct"] = (share * correct)[is_asked].sum() / share[is_asked].sum()
            if bool((begins := is_asked & begins_answer(row)).any()):
                found["first"] = correct[begins].mean()
            found["asked"], found["met"] = strength[is_asked].mean(), met
            kind_of = kinds[row][is_asked]
            found |= {
                f"correct_{self.kinds[k]}": correct[is_asked][kind_of == k].mean() for k in kind_of.unique().tolist()
            }
        if bool(is_text.any()):
            found["text"] = strength[is_text].mean()
        return {"loss": loss, **found}

    def write(self, states: Tensor, ids: Tensor) -> "WrittenText":
        """Write a text, `[1, seq, hidden]` and `[1, seq]` as in `forward`, into an empty memory."""
        branch: Any = self._mixer.memory
        tokens, past = self._inputs(states, ids)
        empty = branch.memory.init_state(1, states.device)
        state = branch.memory.write(tokens.k, tokens.v, empty, tokens.beta, tokens.decay)
        return WrittenText(self._keys(tokens), {**state, **past})

    def read(self, asking: Tensor, text: "WrittenText") -> tuple[Tensor, Tensor, Tensor]:
        """Read at every token of questions, `[questions, tail, hidden]` as in `forward`, which are not written.

        Returns:
            The queries `[questions, heads, tail, key_dim]`; the reads `[questions, tail, heads x value_dim]`; the
            logits of the read strength `[questions, tail]`, the mean over heads.
        """
        branch: Any = self._mixer.memory
        tail = self._layer.input_layernorm(asking)
        queries = self._queries(asking, text.state)
        read = branch.memory.read(queries, text.state).to(tail.dtype).transpose(1, 2)
        return queries, read.flatten(2), self._mixer.memory_read.logits(read, branch.inputs.seen(tail)).mean(-1)

    def _inputs(self, states: Tensor, ids: Tensor) -> tuple[Any, LayerState]:
        """Return what a memory writes of a text, and the state of what makes it."""
        branch: Any = self._mixer.memory
        given = given_values(self._mixer, self.model.model.embed_tokens(ids))
        text = self._layer.input_layernorm(states)
        made: tuple[Any, LayerState] = branch.inputs(
            text, branch.inputs.init_state(1, text.device), given, write_only=True
        )
        return made

    def _queries(self, asking: Tensor, past: LayerState) -> Tensor:
        branch: Any = self._mixer.memory
        queries: Tensor = branch.inputs.queries(self._layer.input_layernorm(asking), past)
        return queries

    def _keys(self, tokens: Any) -> Tensor:
        keys: Tensor = tokens.k[0, :, self._mixer.memory.config.tokens_late :]
        return keys

    def _meeting(self, queries: Tensor, keys: Tensor, points: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of queries `[tokens, heads, key_dim]` whose keys stand at `points`, and the share that met.

        Args:
            queries: at each token that is asked for.
            keys: of the tokens of the text, `[key heads, seq, key_dim]`.
            points: where in the text each of them stands; -1 counts nowhere.
            share: how much each counts.
        """
        keys = keys.repeat_interleave(queries.shape[1] // len(keys), dim=0)
        config = self._mixer.memory.config
        features = (apply_feature_map(queries, config), apply_feature_map(keys, config))
        cosines = torch.einsum("thd,hsd->ts", *features) / len(keys)
        share = share * ((points >= 0) & (points < keys.shape[1]))
        points = points.clamp(min=0, max=keys.shape[1] - 1)
        wrong = F.cross_entropy(self.settings.sharpness * cosines.float(), points, reduction="none")
        total = share.sum().clamp(min=1e-6)
        met = (share * (cosines.argmax(-1) == points)).sum() / total
        return (share * wrong).sum() / total, met

    @torch.no_grad()
    def values(self, states: Tensor) -> Tensor:
        """Return the values of tokens as a read gives them, `[seq, heads x value_dim]`.

        Args:
            states: what enters `start_layer`, `[seq, hidden]`.
        """
        branch: Any = self._mixer.memory
        values = branch.inputs.v_proj(branch.inputs.seen(self._layer.input_layernorm(states))).float()
        values = values.unflatten(-1, (branch.num_key_value_heads, -1))
        values = values.repeat_interleave(branch.num_heads // branch.num_key_value_heads, dim=1)
        return cast(Tensor, (values * branch.memory.norm_weight.float()).flatten(1))

    @property
    def _layer(self) -> Any:
        return self.model.model.layers[self.start_layer]

    @property
    def _mixer(self) -> AddedMemory | CopiedMemory:
        return cast(AddedMemory | CopiedMemory, self._layer.self_attn)
