"""Samples of recall training: a stretch of text with facts hidden in it, as hidden states, and a question.

The states of the text are those of the frozen layers, computed once. Where a fact is put in, its own states are
computed after the few tokens before it; the text behind it keeps the states it had. A sample is decided by the seed and
its number, and by how long texts are when it is made.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from senri.data.facts import Fact, FactMaker, ask
from senri.errors import SenriError
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.frozen_base import lower_states
from senri.training.recall.config import PASSAGES, Phase, RecallConfig, Style
from senri.training.recall.curriculum import GrowingLength
from senri.training.rows import TrainingRows


@dataclass(frozen=True)
class _Sample:
    """One sample before its facts have states.

    Attributes:
        start: where its text begins.
        length: of its text, without facts.
        facts: tokens of each fact, and where in the text it is put in, in order.
        tail: tokens of question and answer, or of the text that goes on.
        answer: where in the tail the answer begins; None in plain text.
        kind: of the fact that is asked for, as its place among the configured kinds; -1 in plain text.
    """

    start: int
    length: int
    facts: tuple[tuple[list[int], int], ...]
    tail: list[int]
    answer: int | None
    kind: int = -1


class RecallBatches:
    """Makes batches for `Recall`; the trainer's collator.

    Args:
        model: a Senri model whose layers below the first memory are frozen.
        tokenizer: its tokenizer.
        rows: the text, with the outputs of the frozen layers.
        config: of recall training.
        length: how long texts are.
        seed: of everything that is drawn.
        half: run frozen layers in bfloat16, as the trainer runs the others.

    Raises:
        SenriError: the rows bring no states, or less text than the longest sample; a chat without a template.
    """

    def __init__(
        self,
        model: SenriForCausalLM,
        tokenizer: Any,
        rows: TrainingRows,
        config: RecallConfig,
        length: GrowingLength,
        seed: int,
        half: bool = False,
    ) -> None:
        if rows.frozen_base is None:
            raise SenriError("recall training starts from the outputs of frozen layers: set training.frozen_base=true.")
        if any(phase.styles.get("chat") for phase in config.phases) and not tokenizer.chat_template:
            raise SenriError(
                "training.recall.phases ask in the style chat, but the tokenizer has no chat template: leave chat "
                "out of styles."
            )
        self._model, self._tokenizer, self._rows, self._base = model, tokenizer, rows, rows.frozen_base
        self._config, self._length, self._seed, self._half = config, length, seed, half
        self._makers = {kind: FactMaker("train", [kind]) for kind in config.kinds if kind != PASSAGES}
        self._tokens = len(rows) * len(rows.tokens[0])
        self._margin = max(config.neighbourhood, config.question_context, config.text_tokens)
        if self._tokens < config.longest + 2 * self._margin:
            raise SenriError(
                f"the training text has {self._tokens} tokens, fewer than a sample of training.recall.longest "
                f"{config.longest}: give more text."
            )

    def __call__(self, items: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """Return the fields of `Recall.forward` for some of the numbered samples: fewer, the longer texts are."""
        numbers = [item["number"] for item in items]
        rng = random.Random(f"{self._seed}-{numbers[0]}-batch")
        length = max(int(self._length.length * rng.uniform(self._config.shortest_share, 1)), 1)
        fitting = min(len(numbers), max(self._config.tokens_per_batch // length, 2))
        phase = self._config.phase_at(self._length.length)
        samples = [self._sample(number, length, phase) for number in numbers[:fitting]]
        texts = [self.read(sample) for sample in samples]
        tails = [torch.tensor(sample.tail) for sample in samples]
        lengths = torch.tensor([len(text) for text in texts])
        ids = pad_sequence(tails, batch_first=True)
        columns = torch.arange(ids.shape[1])
        ends = torch.tensor([len(tail) for tail in tails])
        answers = torch.tensor([len(s.tail) if s.answer is None else s.answer for s in samples])
        is_text = torch.tensor([sample.answer is None for sample in samples])
        present = columns < ends[:, None]
        return {
            "states": pad_sequence(texts, batch_first=True),
            "lengths": lengths,
            "tail_ids": ids,
            "is_answer": present & (columns >= answers[:, None]),
            "is_text": present & is_text[:, None],
            "kinds": torch.tensor([sample.kind for sample in samples]),
            "kl_weight": torch.tensor(phase.kl_weight),
        }

    def read(self, sample: _Sample) -> Tensor:
        """Return the states of a sample's text with its facts, `[seq, hidden]`."""
        pieces, last = [], 0
        own = self._fact_states(sample)
        for (_, place), states in zip(sample.facts, own, strict=True):
            pieces += [self._base.stretch(sample.start + last, place - last), states]
            last = place
        pieces.append(self._base.stretch(sample.start + last, sample.length - last))
        return torch.cat(pieces)

    def _sample(self, number: int, length: int, phase: Phase) -> _Sample:
        config = self._config
        rng = random.Random(f"{self._seed}-{number}")
        start = rng.randrange(self._margin, self._tokens - length - self._margin)
        if rng.random() < phase.text_share:
            tail = self._ids(start + length - config.question_context, config.question_context + config.text_tokens)
            return _Sample(start, length, (), tail, None)
        kind = _drawn(rng, phase.kinds)
        number_of_kind = config.kinds.index(kind)
        if kind == PASSAGES:
            return self._passage(start, length, number_of_kind, rng)
        facts = self._makers[kind].make(rng, rng.choice(phase.needles))
        places = sorted(rng.randrange(length + 1) for _ in facts)
        hidden = tuple((self._encode(f" {fact.sentence}"), place) for fact, place in zip(facts, places, strict=True))
        asked = rng.choice(facts)
        context = self._ids(start + length - config.question_context, config.question_context)
        question, answer = self._asked(asked, _drawn(rng, phase.styles))
        tail = [*context, *question, *answer]
        return _Sample(start, length, hidden, tail, len(tail) - len(answer), number_of_kind)

    def _passage(self, start: int, length: int, kind: int, rng: random.Random) -> _Sample:
        """Return a sample that asks for a piece of the text by its beginning, without the text before the question:
        the piece may stand in it.
        """
        cue = min(self._config.passage_cue, length - 1)
        rest = min(self._config.passage_tokens, length - cue)
        place = start + rng.randrange(length - cue - rest + 1)
        tail = [*self._encode("\n"), *self._ids(place, cue + rest)]
        return _Sample(start, length, (), tail, len(tail) - rest, kind)

    def _asked(self, fact: Fact, style: Style) -> tuple[list[int], list[int]]:
        if style != "chat":
            question, answer = ask(fact, style)
            return self._encode(question), self._encode(answer)
        message = [{"role": "user", "content": fact.question}]
        text = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return self._encode(f"\n{text}"), [*self._encode(fact.answer), self._tokenizer.eos_token_id]

    def _fact_states(self, sample: _Sample) -> list[Tensor]:
        """Return the states of each fact, computed after the tokens before it."""
        if not sample.facts:
            return []
        before = self._config.neighbourhood
        runs = [torch.tensor([*self._ids(sample.start + place - before, before), *ids]) for ids, place in sample.facts]
        padded = pad_sequence(runs, batch_first=True).to(self._model.device)  # behind the end, which nothing sees
        with torch.autocast(padded.device.type, torch.bfloat16, enabled=self._half):
            states = lower_states(self._model, padded, self._base.start_layer, padded.shape[1]).float().cpu()
        return [row[before : len(run)] for row, run in zip(states, runs, strict=True)]

    def _ids(self, start: int, count: int) -> list[int]:
        ids: list[int] = self._rows.stretch(start, count).tolist()
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _drawn(rng: random.Random, weights: dict[Any, float]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]


class NumberedSamples(torch.utils.data.Dataset[dict[str, int]]):
    """The numbers of samples, which `RecallBatches` makes when they are asked for.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"number": index}
