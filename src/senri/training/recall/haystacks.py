"""Haystacks of the losses `finding` and `recall`: a stretch of text with facts in it, and many questions about it.

What enters the memory's layer is kept: of the text by `FrozenBase`, of facts by `KeptRuns`. A fact's states are those
after a window of other text, so that it can be put in wherever a sentence of the text ends, as in use. Words torn from
their sentence would tell of the fact behind them, and the memory would learn to write what follows such words.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from senri.data.facts import FactMaker, ask
from senri.data.packing import tokens_of
from senri.errors import SenriError
from senri.evaluation.needle.text import SentenceEnds
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.recall.config import LengthsConfig
from senri.training.recall.haystack_config import HaystackConfig
from senri.training.recall.kept import KeptRuns, Run
from senri.training.rows import TrainingRows

_ENDS = ("chat", "question")
"""Styles of asking in which nothing comes behind the answer; the others are sentences that go on."""


@dataclass(frozen=True)
class Asked:
    """A question, or plain text that goes on.

    Attributes:
        number: among all questions.
        ids: its tokens with the answer's.
        context: tokens of plain text at its beginning.
        answer: where in them the answer begins.
        points: for each token of the answer where it stands in the fact, or, of a passage, in the whole text; -1 for
            one that does not stand there as the same token. For the end of text where what follows the answer stands.
        kind: as its place among `Haystacks.kinds`.
    """

    number: int
    ids: tuple[int, ...]
    context: int
    answer: int
    points: tuple[int, ...]
    kind: int


@dataclass(frozen=True)
class Haystack:
    """A stretch of the text with facts in it.

    Attributes:
        length: tokens of it without the facts.
        start: where in the text it begins.
        states: `[seq, hidden]`, what enters the memory's layer.
        ids: `[seq]`, its tokens.
        hidden: `[seq]`, which of them came with a fact.
        asked: questions, each with where its fact begins in `ids`; None for a passage, whose `points` count in the
            whole text.
        columns: takes a place in the whole text to where it lies in `ids`.
        rng: that goes on deciding.
    """

    length: int
    start: int
    states: Tensor
    ids: Tensor
    hidden: Tensor
    asked: list[tuple[Asked, int | None]]
    columns: Callable[[int], int]
    rng: random.Random


class Haystacks:
    """Draws haystacks.

    Args:
        model: a Senri model whose layers below the memory are frozen.
        tokenizer: its tokenizer.
        rows: the text, with the outputs of the frozen layers.
        config: what is hidden and asked for.
        lengths: of the texts.
        behind: tokens of text that are needed behind a haystack.
        folder: where states of facts are kept.
        batch_size: numbered samples that stand for one step.
        seed: of everything that is drawn.
        dtype: of the states that are kept.
        half: run frozen layers in bfloat16, as the trainer runs the others.

    Raises:
        SenriError: the rows bring no states, or less text than the longest haystack; a chat without a template.
    """

    def __init__(
        self,
        model: SenriForCausalLM,
        tokenizer: Any,
        rows: TrainingRows,
        config: HaystackConfig,
        lengths: LengthsConfig,
        behind: int,
        folder: Path,
        batch_size: int,
        seed: int,
        dtype: str,
        half: bool = False,
    ) -> None:
        if rows.frozen_base is None:
            raise SenriError("recall training starts from the outputs of frozen layers: set training.frozen_base=true.")
        self._tokenizer, self.rows, self.base = tokenizer, rows, rows.frozen_base
        self._config, self._lengths, self.batch_size, self._seed = config, lengths, batch_size, seed
        self.kinds = config.kind_names
        self.tokens = min(config.tokens, len(rows) * len(rows.tokens[0]))
        self.margin = max(config.neighbourhood, config.question_context + config.text_tokens, behind)
        around = max(self.margin, config.passages_until, config.passage_width)
        if self.tokens <= max(lengths.longest, config.passage_width, *config.window_tokens) + 2 * around:
            raise SenriError(
                f"the training text has {self.tokens} tokens (training.recall.haystacks.tokens), too few for a text of "
                f"{lengths.longest} tokens (training.recall) with what stands around it: give more text."
            )
        if config.styles.get("chat") and not tokenizer.chat_template:
            raise SenriError(
                "training.recall.haystacks.styles has chat, but the tokenizer has no chat template: set styles.chat to "
                "0."
            )
        self._ends_sentence = SentenceEnds(tokenizer)
        rng = random.Random(f"{seed}-finding")
        self._facts: list[Run] = []
        self._numbers = count()
        self._groups: list[list[int]] = []  # facts that may stand in one text
        self._about: list[list[Asked]] = []  # the questions about each fact
        while len(self._facts) < config.facts:
            self._add_group(rng)
        self._areas = [self._area(rng) for _ in range(config.passage_areas)]
        self.texts = [self._text(rng) for _ in range(config.texts)]
        window_tokens = islice(cycle(config.window_tokens), config.windows)
        self.windows = [torch.tensor([self._some(tokens, rng)]) for tokens in window_tokens]
        start, facts = self.base.start_layer, folder / "facts"
        self._kept_facts = KeptRuns(model, self._facts, self.windows, start, facts, dtype, outputs=False, half=half)

    @property
    def runs(self) -> list[Run]:
        """The tokens of all questions, passages and plain texts, in the order of their numbers."""
        about = [one for some in (*self._about, *(passages for _, passages in self._areas)) for one in some]
        return [Run(one.ids, answer=one.answer) for one in (*about, *(text for text, _ in self.texts))]

    def draw(self, number: int, passages: bool, most_facts: bool = False) -> Haystack:
        """Return the haystack that some numbered samples stand for.

        Args:
            number: of the first sample.
            passages: ask for passages of the text too.
            most_facts: as many of them as a text may have.
        """
        rng = random.Random(f"{self._seed}-{number}-haystack")
        reach = self._lengths.at(number // self.batch_size)
        length = max(int(reach * rng.uniform(self._lengths.shortest_share, 1)), 1)
        start, asked_passages = self._start(length, rng) if passages else (self._anywhere(length, rng), [])
        facts = self._chosen(length, [max(self._config.hidden)] if most_facts else self._config.hidden, rng)
        places = sorted(self._border(start + rng.randrange(length + 1), start + length) - start for _ in facts)
        states, ids, begins, columns = self._read(start, length, facts, places)
        hidden = torch.zeros(len(ids), dtype=torch.bool)
        for fact, begin in zip(facts, begins, strict=True):
            hidden[begin : begin + len(self._facts[fact])] = True
        about = [(one, begin) for fact, begin in zip(facts, begins, strict=True) for one in self._about[fact]]
        asked: list[tuple[Asked, int | None]] = [*rng.sample(about, min(self._config.questions, len(about)))]
        asked += [(one, None) for one in asked_passages]
        return Haystack(length, start, states, ids, hidden, asked, columns, rng)

    def _start(self, length: int, rng: random.Random) -> tuple[int, list[Asked]]:
        """Return where a text begins, and the passages of it that are asked for."""
        width = self._config.passage_width
        if self._areas and width < length <= self._config.passages_until:
            place, passages = rng.choice(self._areas)
            return place - rng.randrange(length - width + 1), passages
        return self._anywhere(length, rng), []

    def _anywhere(self, length: int, rng: random.Random) -> int:
        return rng.randrange(self.margin, self.tokens - length - self.margin)

    def _chosen(self, length: int, hidden: Sequence[int], rng: random.Random) -> list[int]:
        """Return the facts of a text: whole groups, as far as there is room."""
        room = min(rng.choice(hidden), max(length // self._config.tokens_per_fact, 1))
        groups = rng.sample(self._groups, min(room, len(self._groups)))
        facts: list[int] = []
        while groups and len(facts) < room:
            facts += rng.sample(group := groups.pop(), min(room - len(facts), len(group)))
        return facts

    def _read(
        self, start: int, length: int, facts: list[int], places: list[int]
    ) -> tuple[Tensor, Tensor, list[int], Callable[[int], int]]:
        """Return states and tokens of a text with facts in it, where each fact begins, and what says where a token of
        the text without them lies.
        """
        states, ids, begins, last, at = [], [], [], 0, 0
        for fact, place, own in zip(facts, places, self._kept_facts.states(facts), strict=True):
            run = self._facts[fact]
            states += [self.base.stretch(start + last, place - last), own]
            ids += [self.rows.stretch(start + last, place - last), torch.tensor(run.ids[run.skip :])]
            begins.append(at + place - last)
            at, last = begins[-1] + len(run), place
        states.append(self.base.stretch(start + last, length - last))
        ids.append(self.rows.stretch(start + last, length - last))

        def columns(place: int) -> int:
            before = sum(
                len(self._facts[fact]) for fact, put in zip(facts, places, strict=True) if put <= place - start
            )
            return place - start + before

        return torch.cat(states), torch.cat(ids), begins, columns

    def _add_group(self, rng: random.Random) -> None:
        """Make facts that may stand in one text; in a share of the groups only their keys tell them apart."""
        config = self._config
        kinds = rng.choices(list(config.kinds), list(config.kinds.values()), k=config.group)
        if alike := rng.random() < config.alike_share:
            kinds = kinds[:1]
        group = []
        same_wording = alike and rng.random() < config.same_wording_share
        made = FactMaker("train", kinds).make(rng, config.group, same_kind=alike, same_wording=same_wording)
        for fact in made:
            sentence = tokens_of(f" {fact.sentence}", self._tokenizer)
            group.append(len(self._facts))
            last = self.tokens - config.aftermath
            place = self._border(rng.randrange(config.neighbourhood, last), last)
            before = self._ids(place - config.neighbourhood, config.neighbourhood)
            self._facts.append(Run((*before, *sentence, *self._ids(place, config.aftermath)), config.neighbourhood))
            asked = []
            for style in config.draw_styles(rng):
                if style == "chat":
                    message = [{"role": "user", "content": fact.question}]
                    text = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
                    # As it stands in the text: without the space before it, its first token would be another one.
                    question, answer = f"\n{text}", f" {fact.answer}"
                else:
                    question, answer = ask(fact, style)
                ids = tokens_of(answer, self._tokenizer)
                tail = [*self._some(config.question_context, rng), *tokens_of(question, self._tokenizer)]
                points, end = aligned(ids, sentence), []
                if style in _ENDS:
                    # Nothing in the text says the end, but what follows the answer there is met.
                    end = [self._tokenizer.eos_token_id]
                    points.append(points[-1] + 1 if points[-1] >= 0 else -1)
                kind = self.kinds.index(fact.kind)
                asked.append(self._add([*tail, *ids, *end], config.question_context, len(tail), points, kind))
            self._about.append(asked)
        self._groups.append(group)

    def _area(self, rng: random.Random) -> tuple[int, list[Asked]]:
        """Return where a stretch begins whose passages are asked for together, and the questions."""
        config = self._config
        long = config.passage_cue + config.passage_tokens
        around = max(config.passages_until, config.passage_width)
        place = rng.randrange(around, self.tokens - around)
        passages = []
        for _ in range(config.passages):
            at = place + rng.randrange(config.passage_width - long + 1)
            tail = tokens_of("\n", self._tokenizer)
            answer = len(tail) + config.passage_cue
            points = range(at + config.passage_cue, at + long)
            passages.append(self._add([*tail, *self._ids(at, long)], 0, answer, points, len(self.kinds) - 1))
        return place, passages

    def _text(self, rng: random.Random) -> tuple[Asked, int]:
        """Return plain text that goes on, and where it does."""
        context, more = self._config.question_context, self._config.text_tokens
        place = rng.randrange(context, self.tokens - more)
        return self._add(self._ids(place - context, context + more), context, context, [-1] * more, -1), place

    def _add(self, ids: Sequence[int], context: int, answer: int, points: Sequence[int], kind: int) -> Asked:
        return Asked(next(self._numbers), tuple(ids), context, answer, tuple(points), kind)

    def _border(self, place: int, last: int) -> int:
        """Return the first place of the text from `place` to `last` that a sentence ends before, or else `place`."""
        borders = (at for at in range(max(place, 1), last + 1) if self._ends_sentence(self._ids(at - 1, 1)[0]))
        return next(borders, place)

    def _some(self, count: int, rng: random.Random) -> list[int]:
        """Return some tokens of the text."""
        return self._ids(rng.randrange(self.tokens - count), count)

    def _ids(self, start: int, count: int) -> list[int]:
        ids: list[int] = self.rows.stretch(start, count).tolist()
        return ids


def aligned(answer: Sequence[int], sentence: Sequence[int]) -> list[int]:
    """Return where each token of an answer stands in a sentence; -1 for the first where only those behind it do
    (another token begins it there, as a space before a word does), or for all.
    """
    for skipped in (0, 1):
        rest = [*answer[skipped:]]
        for place in range(len(sentence) - len(rest), -1, -1):
            if rest and [*sentence[place : place + len(rest)]] == rest:
                return [-1] * skipped + [*range(place, place + len(rest))]
    return [-1] * len(answer)
