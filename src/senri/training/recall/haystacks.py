"""Haystacks of the losses `finding` and `recall`: a stretch of text with facts in it, and many questions about it.

Everything that a step needs of the frozen layers is kept: of the text by `FrozenBase`, of facts and questions by
`KeptRuns`. A fact's states are those after some other tokens of the text, so that it can be put in anywhere.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from senri.data.facts import FactMaker, ask
from senri.errors import SenriError
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.recall.config import HaystackConfig, LengthsConfig
from senri.training.recall.kept import KeptRuns, Run
from senri.training.rows import TrainingRows


@dataclass(frozen=True)
class Asked:
    """A question, or plain text that goes on.

    Attributes:
        run: its tokens with the answer's, as its number among the kept ones.
        ids: those tokens.
        answer: where in them the answer begins.
        points: for each token of the answer where it stands in the fact, or, of a passage, in the whole text; -1 for
            one that does not stand there as the same token.
        kind: as its place among `HaystackBatches.kinds`.
    """

    run: int
    ids: tuple[int, ...]
    answer: int
    points: tuple[int, ...]
    kind: int


class HaystackBatches:
    """Makes batches for `Finding` and `Recall`, one haystack each; the trainer's collator.

    Args:
        model: a Senri model whose layers below the memory are frozen.
        tokenizer: its tokenizer.
        rows: the text, with the outputs of the frozen layers.
        config: what is hidden and asked for.
        lengths: of the texts.
        folder: where states of facts and questions are kept.
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
        folder: Path,
        batch_size: int,
        seed: int,
        dtype: str,
        half: bool = False,
    ) -> None:
        if rows.frozen_base is None:
            raise SenriError("recall training starts from the outputs of frozen layers: set training.frozen_base=true.")
        self._tokenizer, self._rows, self._base = tokenizer, rows, rows.frozen_base
        self._config, self._lengths, self._batch_size, self._seed = config, lengths, batch_size, seed
        self.kinds = config.kind_names
        self._tokens = len(rows) * len(rows.tokens[0])
        self._margin = max(config.neighbourhood, config.question_context + config.text_tokens)
        around = max(self._margin, config.passages_until, config.passage_width)
        if self._tokens <= max(lengths.longest, config.passage_width) + 2 * around:
            raise SenriError(
                f"the training text has {self._tokens} tokens, too few for a text of "
                f"{lengths.longest} tokens (training.recall) with what stands around it: give more text."
            )
        if "chat" in config.styles and not tokenizer.chat_template:
            raise SenriError(
                "training.recall.haystacks.styles has chat, but the tokenizer has no chat template: leave it out."
            )
        rng = random.Random(f"{seed}-finding")
        self._facts: list[Run] = []
        self._runs: list[Run] = []
        self._groups: list[list[int]] = []  # facts that may stand in one text
        self._about: list[list[Asked]] = []  # the questions about each fact
        while len(self._facts) < config.facts:
            self._add_group(rng)
        self._areas = [self._area(rng) for _ in range(config.passage_areas)]
        self._texts = [self._text(rng) for _ in range(config.texts)]
        start_layer = self._base.start_layer
        self._kept_facts = KeptRuns(model, self._facts, start_layer, folder / "facts", dtype, said=False, half=half)
        self._kept = KeptRuns(model, self._runs, start_layer, folder / "questions", dtype, said=True, half=half)

    def __call__(self, items: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """Return the fields that both losses take, for the haystack that some numbered samples stand for."""
        config = self._config
        number = items[0]["number"]
        rng = random.Random(f"{self._seed}-{number}-haystack")
        reach = self._lengths.at(number // self._batch_size)
        length = max(int(reach * rng.uniform(self._lengths.shortest_share, 1)), 1)
        start, passages = self._start(length, rng)
        facts = self._chosen(length, rng)
        places = sorted(rng.randrange(length + 1) for _ in facts)
        states, ids, begins, columns = self._read(start, length, facts, places)
        about = [(one, begin) for fact, begin in zip(facts, begins, strict=True) for one in self._about[fact]]
        asked: list[tuple[Asked, int | None]] = [*rng.sample(about, min(config.questions, len(about)))]
        asked += [(one, None) for one in passages]
        fits = [one for one, place in self._texts if not start - self._margin < place < start + length]
        asked += [(one, None) for one in rng.sample(fits, min(config.text_questions, len(fits)))]
        runs = [one.run for one, _ in asked]
        targets, points, said = [], [], []
        for (one, begin), own in zip(asked, self._kept.said(runs), strict=True):
            ids_of_run = torch.tensor(one.ids)
            targets.append(torch.where(torch.arange(len(one.ids)) >= one.answer, ids_of_run, -100)[1:])
            said.append(own[1:])
            places_of_run = torch.full((len(one.ids) - 1,), -1)
            there = [-1 if point < 0 else columns(point) if begin is None else begin + point for point in one.points]
            places_of_run[one.answer - 1 :] = torch.tensor(there)
            points.append(places_of_run)
        return {
            "states": states[None],
            "ids": ids[None],
            "asking": pad_sequence(self._kept.states(runs), batch_first=True)[:, :-1],
            "targets": pad_sequence(targets, batch_first=True, padding_value=-100),
            "points": pad_sequence(points, batch_first=True, padding_value=-1),
            "said": pad_sequence(said, batch_first=True),
            "kinds": torch.tensor([one.kind for one, _ in asked]),
        }

    def _start(self, length: int, rng: random.Random) -> tuple[int, list[Asked]]:
        """Return where a text begins, and the passages of it that are asked for."""
        width = self._config.passage_width
        if self._areas and width < length <= self._config.passages_until:
            place, passages = rng.choice(self._areas)
            return place - rng.randrange(length - width + 1), passages
        return rng.randrange(self._margin, self._tokens - length - self._margin), []

    def _chosen(self, length: int, rng: random.Random) -> list[int]:
        """Return the facts of a text: whole groups, as far as there is room."""
        room = min(rng.choice(self._config.hidden), max(length // self._config.tokens_per_fact, 1))
        groups = rng.sample(self._groups, min(room, len(self._groups)))
        facts: list[int] = []
        while groups and len(facts) < room:
            facts += rng.sample(group := groups.pop(), min(room - len(facts), len(group)))
        return facts

    def _read(
        self, start: int, length: int, facts: list[int], places: list[int]
    ) -> tuple[Tensor, Tensor, list[int], Any]:
        """Return states and tokens of a text with facts in it, where each fact begins, and what says where a token of
        the text without them lies.
        """
        states, ids, begins, last, at = [], [], [], 0, 0
        for fact, place, own in zip(facts, places, self._kept_facts.states(facts), strict=True):
            run = self._facts[fact]
            states += [self._base.stretch(start + last, place - last), own]
            ids += [self._rows.stretch(start + last, place - last), torch.tensor(run.ids[run.skip :])]
            begins.append(at + place - last)
            at, last = begins[-1] + len(run), place
        states.append(self._base.stretch(start + last, length - last))
        ids.append(self._rows.stretch(start + last, length - last))

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
        for fact in FactMaker("train", kinds).make(rng, config.group, same_kind=alike):
            sentence = self._encode(f" {fact.sentence}")
            group.append(len(self._facts))
            self._facts.append(Run((*self._some(config.neighbourhood, rng), *sentence), config.neighbourhood))
            asked = []
            for style in rng.sample(config.styles, min(config.asked, len(config.styles))):
                if style == "chat":
                    message = [{"role": "user", "content": fact.question}]
                    text = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
                    question, answer, end = f"\n{text}", fact.answer, [self._tokenizer.eos_token_id]
                else:
                    question, answer, end = *ask(fact, style), []
                ids = self._encode(answer)
                tail = [*self._some(config.question_context, rng), *self._encode(question)]
                points = [*aligned(ids, sentence), *(-1 for _ in end)]
                asked.append(self._add([*tail, *ids, *end], len(tail), points, self.kinds.index(fact.kind)))
            self._about.append(asked)
        self._groups.append(group)

    def _area(self, rng: random.Random) -> tuple[int, list[Asked]]:
        """Return where a stretch begins whose passages are asked for together, and the questions."""
        config = self._config
        long = config.passage_cue + config.passage_tokens
        around = max(config.passages_until, config.passage_width)
        place = rng.randrange(around, self._tokens - around)
        passages = []
        for _ in range(config.passages):
            at = place + rng.randrange(config.passage_width - long + 1)
            tail = self._encode("\n")
            answer = len(tail) + config.passage_cue
            points = range(at + config.passage_cue, at + long)
            passages.append(self._add([*tail, *self._ids(at, long)], answer, points, len(self.kinds) - 1))
        return place, passages

    def _text(self, rng: random.Random) -> tuple[Asked, int]:
        """Return plain text that goes on, and where it does."""
        context, more = self._config.question_context, self._config.text_tokens
        place = rng.randrange(context, self._tokens - more)
        return self._add(self._ids(place - context, context + more), context, [-1] * more, -1), place

    def _add(self, ids: Sequence[int], answer: int, points: Sequence[int], kind: int) -> Asked:
        self._runs.append(Run(tuple(ids)))
        return Asked(len(self._runs) - 1, tuple(ids), answer, tuple(points), kind)

    def _some(self, count: int, rng: random.Random) -> list[int]:
        """Return some tokens of the text."""
        return self._ids(rng.randrange(self._tokens - count), count)

    def _ids(self, start: int, count: int) -> list[int]:
        ids: list[int] = self._rows.stretch(start, count).tolist()
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
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


class NumberedSamples(torch.utils.data.Dataset[dict[str, int]]):
    """The numbers of samples, which a collator makes when they are asked for.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"number": index}
