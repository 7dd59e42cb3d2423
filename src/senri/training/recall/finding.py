"""Finding: does a query meet its key? Learnt where the memory is read, without running the layers above it.

What a read found is known without asking the model: the read is compared with the values of all tokens of the text.
The shares of a softmax over these likenesses are a pointer to the text (Vinyals et al. 2015, arXiv 1506.03134). It must
be right, and it must be so by a margin: in a text many times as long many times as much is in the way, and how much
that is can be told from this text. That is what teaches a memory what not to write. Where the model alone finds a token
impossible, or the question has it, the memory need not tell it from the right one: both are weighed by what the model
says and the window shows, as in use.

What was found is mixed with what the model says without a memory by the read strength (pointer sentinel mixture, Merity
et al. 2016, arXiv 1609.07843, equation 5), so that the strength learns to be what it is for: how far the memory knows
better. This teaches the strength and nothing else; the read is taken as it is. Sentences worded as none in training are
written more faintly than those of training; so facts are written more faintly in some texts, and faint reads are heard.

Where the right key is, is known as well: of all keys of the text, that of the token to be said should be the most like
the query (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748, equation 4). This says of every key that is in the way
which one it is, however little of it a read shows. Many facts of one kind in one text are what it learns most from.
"""

import math
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.features import apply_feature_map
from senri.mixers import AddedMemory, CopiedMemory, given_values, seen_by_memory
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.objective import Objective
from senri.training.recall.answers_said import AnswersSaid, likely
from senri.training.recall.config import FindingConfig
from senri.training.recall.pointing import Pointer, clearness, interference, mean_square, meeting_loss
from senri.training.recall.values import check_branch
from senri.training.recall.weighing import answer_shares, answer_weights, begins_answer


class Finding(Objective):
    """What the trainer runs: haystacks with their questions in, the loss of pointers and of the mixture out.

    Args:
        model: a Senri model with one memory, which must be added to the layer's attention.
        start_layer: the memory's layer.
        config: of this loss.
        kinds: names of the kinds of questions.
        first_weight: the first token of an answer counts so many times as much as each of the others.

    Raises:
        SenriError: a memory of another kind, or several.
    """

    def __init__(
        self,
        model: SenriForCausalLM,
        start_layer: int,
        config: FindingConfig,
        kinds: tuple[str, ...],
        first_weight: float,
    ) -> None:
        super().__init__(model)
        check_branch(model, start_layer, "finding", AddedMemory, CopiedMemory)
        if not hasattr(model.model.layers[start_layer].self_attn, "memory_read"):
            raise SenriError("the loss finding teaches a read strength: set memory.learned_read_strength to true.")
        self.start_layer, self.settings = start_layer, config
        self._end_token = -1 if (end := model.config.end_token) is None else end
        self.kinds, self.first_weight = kinds, first_weight

    def forward(
        self,
        states: Tensor,
        ids: Tensor,
        hidden: Tensor,
        asking: Tensor,
        asking_ids: Tensor,
        before: Tensor,
        targets: Tensor,
        points: Tensor,
        outputs: Tensor,
        kinds: Tensor,
        meeting_alone: Tensor,
        times_longer: Tensor,
        fainter: Tensor,
    ) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and what else is worth knowing.

        `met` is the share of answer tokens whose query is most like their own key, `correct` of those at whose token
        the pointer points most, both weighed by what the model says and weighted as in the loss; `first` is that of
        first tokens alone, `correct_<kind>` that of one kind, over tokens; `cosine` is how much like their token's
        value reads are; `asked` and `text` are mean read strengths before answers and in plain text, `cost` the nats
        that plain text loses by the memory; `kept` and `passed` mean write strengths of answers and of the haystack;
        `length` is that of the text; `ended` is the share that the memory gives to ends of answers. A token that the
        text does not hold, or that is not written yet, counts nowhere but in plain text; ends of answers count for the
        mixture.

        Args:
            states: `[1, seq, hidden]`, what enters `start_layer` in the text.
            ids: `[1, seq]`, its tokens.
            hidden: `[seq]`, which of them came with a fact; the others are the haystack.
            asking: `[questions, tail, hidden]`, what enters `start_layer` in questions and answers.
            asking_ids: `[questions, tail]`, their tokens.
            before: `[questions, window]`, the tokens that stand before them, -1 for none.
            targets: `[questions, tail]`, the token that follows each, where it is asked for; else -100.
            points: `[questions, tail]`, where that token stands in the text, or -1.
            outputs: `[questions, tail, hidden]`, what the model without memory has there for the head.
            kinds: `[questions]`, what each asks for, as its place in `self.kinds`; -1 for plain text that goes on.
            meeting_alone: whether queries only learn to meet their keys, without a memory: `loss`, `met` and `length`.
            times_longer: so many times as long as it is the haystack counts.
            fainter: logits of the write strengths of facts are lowered by this much.
        """
        row, column = (targets >= 0).nonzero(as_tuple=True)
        is_text = kinds[row] < 0
        weight = answer_weights(row, self.first_weight)
        share, weight = answer_shares(row, weight) * ~is_text, weight * ~is_text
        tokens, past = self._inputs(states, ids)
        seen = self._seen(asking, asking_ids)
        queries = self._queries(seen, past)
        likeness = self._likeness(queries[row, :, column], self._written(tokens.k))
        said_of = AnswersSaid(self.model, self._mixer)
        shown, alone = said_of.shown(asking_ids, before, seen, row, column), said_of.alone(outputs[row, column])
        added = likely(alone, shown, ids[0], self.settings.prior)
        logits = self.settings.sharpness * likeness.mean(1) + added[:, : likeness.shape[-1]]
        meeting, met = meeting_loss(logits, points[row, column], share)
        said = {"length": torch.tensor(float(ids.shape[1])), "met": met}
        if meeting_alone:
            return {"loss": meeting, **said}
        read, strengths = self.read(queries, seen, self._state(self._faint(tokens, hidden, fainter), past))
        read, strengths, wanted = read[row, column].float(), strengths[row, column].float(), targets[row, column]
        pointer = self._pointer(read, states[0], ids[0], wanted, points[row, column], added)
        written = self._strengths(tokens)
        passing = ~hidden[: written.shape[-1]]
        noise = (times_longer - 1) * interference(likeness, written.repeat_interleave(self._group, 0), passing)
        memory: Any = self._mixer.memory
        size = mean_square(read, memory.memory.norm_weight.float(), memory.config.eps)
        pointed = pointer.log_probabilities(self.settings.sharpness, clearness(size, noise))
        copied = said_of.copied(seen[row, column], read.detach(), shown)
        ending = None if copied is None else copied[1]
        mixed = said_of.mixed(copied, pointed.detach(), wanted, alone, strengths, shown)
        ends = ~is_text & (wanted == self._end_token)
        is_asked = ~is_text & ~ends & pointer.is_right.any(-1) & (points[row, column] < len(passing))
        of_asked, of_answers = (
            weight * some / (weight * some).sum().clamp(min=1e-6)
            for some in (is_asked, is_asked if ending is None else is_asked | ends)
        )
        of_text = is_text / is_text.sum().clamp(min=1)
        hearing = ((of_answers + self.settings.text_weight * of_text) * mixed).sum()
        loss = self.settings.meeting * meeting - (of_asked * pointed).sum() - hearing
        correct, strengths, there = (
            pointer.is_correct(self.settings.sharpness).float(),
            strengths.sigmoid(),
            points[row, column][is_asked],
        )
        figures = {
            "first": correct[is_asked & begins_answer(row)],
            "asked": strengths[is_asked],
            "text": strengths[is_text],
            "cost": (alone.gather(1, wanted[:, None])[:, 0] - mixed)[is_text],
            "kept": written[:, there[(there >= 0) & (there < len(passing))]],
            "passed": written[:, passing],
            "ended": correct[:0] if ending is None else ending.sigmoid()[ends],
            **{f"correct_{name}": correct[is_asked & (kinds[row] == kind)] for kind, name in enumerate(self.kinds)},
        }
        if bool(is_asked.any()):
            said |= {"correct": (of_asked * correct).sum(), "cosine": (of_asked * pointer.right_cosine).sum()}
        said |= {name: some.mean() for name, some in figures.items() if some.numel()}
        return {"loss": loss, **{name: figure.detach() for name, figure in said.items()}}

    def read(self, queries: Tensor, seen: Tensor, state: LayerState) -> tuple[Tensor, Tensor]:
        """Read.

        Args:
            queries: `[questions, heads, tail, key_dim]`.
            seen: what the memory sees there, `[questions, tail, width]`.
            state: of the memory.

        Returns:
            The reads `[questions, tail, heads x value_dim]`; the logits of the read strength `[questions, tail]`, the
            mean over heads.
        """
        branch: Any = self._mixer.memory
        read = branch.memory.read(queries, state).to(seen.dtype).transpose(1, 2)
        return read.flatten(2), self._mixer.memory_read.logits(read.detach(), branch.inputs.seen(seen)).mean(-1)

    def _inputs(self, states: Tensor, ids: Tensor) -> tuple[Any, LayerState]:
        """Return what a memory writes of a text, and the state of what makes it.

        Strengths are taken before a budget of writes lowers them: what more text would cost, `times_longer` teaches,
        and to hear what is written faintly, `fainter`.
        """
        branch: Any = self._mixer.memory
        given = given_values(self._mixer, self.model.model.embed_tokens(ids), ids)
        start = branch.inputs.init_state(1, states.device)
        if "written" in start:
            start["written"].fill_(-math.inf)
        made: tuple[Any, LayerState] = branch.inputs(self._seen(states, ids), start, given, write_only=True)
        return made

    def _faint(self, tokens: Any, hidden: Tensor, fainter: Tensor) -> Any:
        """Return what a memory writes, with the logits of write strengths of `hidden` tokens lowered by `fainter`."""
        if tokens.beta is None:
            return tokens
        late = self._mixer.memory.config.tokens_late
        lowered = F.pad(hidden, (late, 0))[: len(hidden)] * fainter
        return replace(tokens, beta=tokens.beta / (tokens.beta + (1 - tokens.beta) * lowered.exp()))

    def _state(self, tokens: Any, past: LayerState) -> LayerState:
        branch: Any = self._mixer.memory
        memory: Any = branch.memory
        empty = memory.init_state(1, tokens.k.device)
        state: LayerState = memory.write(tokens.k, tokens.v, empty, tokens.beta, tokens.decay)
        return {**state, **past}

    def _seen(self, states: Tensor, ids: Tensor) -> Tensor:
        """Return what the memory sees of tokens whose states enter the layer."""
        states = self._layer.input_layernorm(states)
        return seen_by_memory(self._mixer, states, self.model.model.embed_tokens(ids))

    def _queries(self, seen: Tensor, past: LayerState) -> Tensor:
        branch: Any = self._mixer.memory
        return cast(Tensor, branch.inputs.queries(seen, past))

    def _written(self, of_steps: Tensor) -> Tensor:
        """Take `[1, heads, seq, ...]`, by the step of writing, to `[heads, seq, ...]`, by the token that is written;
        the last ones are missing that a memory which waits, or whose segment is not full, has not written yet.
        """
        config, steps = self._mixer.memory.config, of_steps.shape[2]
        waiting = steps % config.segment_length if config.granularity == "segment" else 0
        return of_steps[0, :, config.tokens_late : steps - waiting]

    def _strengths(self, tokens: Any) -> Tensor:
        """Return write strengths, `[key heads, seq]`."""
        if tokens.beta is None:
            return self._written(torch.full_like(tokens.k[..., 0], self._mixer.memory.config.write_strength))
        return self._written(tokens.beta)

    @property
    def _group(self) -> int:
        """Query heads for each key head."""
        branch: Any = self._mixer.memory
        return cast(int, branch.num_heads // branch.num_key_value_heads)

    def _likeness(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return products of the features of queries `[tokens, heads, key_dim]` with those of all keys of the text,
        `[key heads, seq, key_dim]`: `[tokens, heads, seq]`.
        """
        keys, config = keys.repeat_interleave(self._group, dim=0), self._mixer.memory.config
        features = (apply_feature_map(queries, config), apply_feature_map(keys, config))
        return torch.einsum("thd,hsd->ths", *features).float()

    def _pointer(
        self, read: Tensor, states: Tensor, ids: Tensor, wanted: Tensor, points: Tensor, added: Tensor
    ) -> Pointer:
        """Compare reads `[tokens, heads x value_dim]` with what the tokens of the text have written.

        Where equal tokens have equal values, as where a memory copies, one stands for all.
        """
        read, places = F.normalize(read, dim=-1), torch.arange(len(ids), device=ids.device)
        if isinstance(self._mixer, CopiedMemory):
            held, where = ids.unique(return_inverse=True)
            first = torch.full_like(held, len(ids)).scatter_reduce(0, where, places, "amin")
            cosines = self._mixer.memory_codes.likeness(read, self._values(held, states))
            return Pointer(cosines, held == wanted[:, None], added[:, first])
        is_right = (ids == wanted[:, None]) | (places == points[:, None])
        return Pointer(read @ self._values(ids, states).T, is_right, added)

    @torch.no_grad()
    def _values(self, ids: Tensor, states: Tensor) -> Tensor:
        """Return what tokens have written as a read gives it, with a length of 1: `[tokens, heads x value_dim]`.

        Args:
            ids: `[tokens]`, where the memory copies them.
            states: `[tokens, hidden]`, what enters `start_layer`, where it makes values of these; less their mean.
        """
        branch: Any = self._mixer.memory
        if isinstance(self._mixer, CopiedMemory):
            values = self._mixer.given(self.model.model.embed_tokens(ids[None]), ids[None])[0][0].transpose(0, 1)
        else:
            values = branch.inputs.v_proj(branch.inputs.seen(self._layer.input_layernorm(states))).float()
            values = values.unflatten(-1, (branch.num_key_value_heads, -1)).repeat_interleave(self._group, dim=1)
            values = values - values.mean(0)
        return F.normalize((values * branch.memory.norm_weight.float()).flatten(1), dim=-1)

    @property
    def _layer(self) -> Any:
        return self.model.model.layers[self.start_layer]

    @property
    def _mixer(self) -> AddedMemory | CopiedMemory:
        return cast(AddedMemory | CopiedMemory, self._layer.self_attn)
