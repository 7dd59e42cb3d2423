"""Reading the texts of a recall test and asking: one unit is one text, or with full reading one sample.

The sentences lie further back than the window, so that only the memory can know them. Controls, for every question:

- window only: the memory is switched off.
- other sample: the memory of a sample whose text is the same but for what it hides.
- in the window: the memory is switched off, and what the text hides stands right before the question. That is what the
  model makes of sentences that it has before its eyes, so what a memory that forgets nothing would let it say.
"""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from senri.data import chunks
from senri.errors import SenriError
from senri.evaluation.needle import Haystack
from senri.evaluation.needle.text import NOISE
from senri.evaluation.reader import Reader, without_memory
from senri.evaluation.recall.question import SharedQuestion
from senri.evaluation.recall.samples import RecallSample, make_recall_sample
from senri.evaluation.recall.settings import RecallSettings
from senri.evaluation.recall.shared import SharedReading, memory_of
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit
from senri.models import Session

MEMORY, WINDOW_ONLY, OTHER_SAMPLE, IN_WINDOW = "memory", "window only", "other sample", "in the window"
CONDITIONS = (MEMORY, WINDOW_ONLY, OTHER_SAMPLE, IN_WINDOW)

_WINDOWS_REREAD = 2
"""Windows at the end that all layers read for themselves when reading is shared: what a window holds depends on the
text before it only through the layers below, ever less with the distance."""


def recall_units(subject: Subject, settings: RecallSettings) -> list[Unit]:
    """Return the work, the longest texts first.

    Args:
        subject: a Senri model with a window.
        settings: of the recall test.

    Raises:
        SenriError: books are wanted but none are named, a text without room, or a model that reading cannot be shared
            with.
    """
    if settings.reading == "shared":
        memory_of(subject.model)
    haystacks = {}
    for kind in {settings.described[task].haystack for task in settings.tasks}:
        if kind == "books" and settings.text is None:
            raise SenriError("recall.text is not named, but a task hides things in books: set text=<file or folder>.")
        source = NOISE if kind == "noise" else str(settings.text)
        haystacks[kind] = Haystack(
            source,
            subject.tokenizer,
            noise=settings.noise,
            block_characters=settings.block_characters,
            seed=settings.seed,
        )
    rounds = -(-settings.samples // settings.places)
    texts = [
        _Text(subject, settings, haystacks[kind], kind, length, number)
        for length in sorted(settings.lengths, reverse=True)
        for number in range(rounds)
        for kind in sorted(haystacks)
    ]
    for text in texts:
        text.check_room()
    if settings.reading == "shared":
        return [Unit(text.name, text.length, text.run_shared) for text in texts]
    return [Unit(name, text.length, run) for text in texts for name, run in text.full_runs()]


class _Text:
    """One text, and the samples whose sentences are put in it."""

    def __init__(
        self, subject: Subject, settings: RecallSettings, haystack: Haystack, kind: str, length: int, number: int
    ) -> None:
        self.subject, self.settings, self.haystack = subject, settings, haystack
        self.length, self.name = length, f"{kind}-{length}-{number}"
        late = (branch.config.tokens_late for branch in subject.model.model.memory_branches().values())
        self.behind = settings.behind + max(late, default=0)
        first = number * settings.places
        indices = range(first, min(first + settings.places, settings.samples))
        self.samples = [
            make_recall_sample(settings, task, length, index)
            for task in settings.tasks
            if settings.described[task].haystack == kind
            for index in indices
        ]

    def check_room(self) -> None:
        """Raise SenriError where the places do not fit into the text in front of the window, or a sample is alone."""
        if len(self.samples) < 2:
            raise SenriError(
                f"samples is {self.settings.samples}, which leaves one sample alone in a text of "
                f"{self.settings.places} places, with no other for the control: take one more or one less."
            )
        room, apart = self.length - self.subject.context, 2 * self.behind
        if room < self.settings.places * apart:
            raise SenriError(
                f"a text of {self.length:,} tokens has no room for {self.settings.places} places, {apart} tokens "
                f"apart, in front of the window of {self.subject.context:,}: make lengths longer or places fewer."
            )

    def run_shared(self, scratch: Scratch) -> dict[str, Any]:
        """Read once and ask everything."""
        tokens, places = self._tokens_and_places()
        hidden = [[(self.haystack.encode(f" {text}"), place) for text, place in one.hidden] for one in self.samples]
        model, settings = self.subject.model, self.settings
        reading = SharedReading(model, tokens, places, settings.behind, hidden, settings.chunk_size, scratch)
        last = tokens[-_WINDOWS_REREAD * self.subject.context :]
        session = Session(model)
        memory = session.memory_layers[reading.layer]
        memory.set_memory(reading.alone, 1, model.device)
        self._read(session, last)
        alone = Session(model)
        with without_memory(model):
            self._read(alone, last)
        answers = []
        for number, sample in enumerate(self.samples):
            prompt, answer = self._question(sample)
            asked = SharedQuestion(session, reading.layer, torch.tensor([prompt + answer[:-1]]))
            for condition, owner in ((MEMORY, number), (OTHER_SAMPLE, self._other(number))):
                memory.set_memory(reading.states[owner], 1, model.device)
                answers.append(self._scored(asked.logits(session, len(answer)), sample, condition))
            with without_memory(model):
                answers.append(self._scored(asked.logits(alone, len(answer)), sample, WINDOW_ONLY))
                answers.append(self._ask(alone, sample, IN_WINDOW))
        return {"length": self.length, "reading": "shared", "answers": answers}

    def full_runs(self) -> Iterator[tuple[str, Any]]:
        """Yield a name and the work for each sample: its own text, read whole."""
        for number, sample in enumerate(self.samples):

            def run(scratch: Scratch, number: int = number) -> dict[str, Any]:
                sample, other = self.samples[number], self.samples[self._other(number)]
                session = self.subject.reader()
                for chunk in chunks(self._text_of(sample), self.settings.chunk_size):
                    session.read(chunk)
                    scratch.advance(chunk.shape[1])
                answers = [self._ask(session, sample, MEMORY), self._ask(session, other, OTHER_SAMPLE)]
                with without_memory(self.subject.model):
                    answers += [self._ask(session, sample, condition) for condition in (WINDOW_ONLY, IN_WINDOW)]
                return {"length": self.length, "reading": "full", "answers": answers}

            yield f"{self.name}-{sample.task}-{sample.index}", run

    def _other(self, number: int) -> int:
        """Return the number of another sample of the same task, or of any where there is none."""
        same = [index for index, one in enumerate(self.samples) if one.task == self.samples[number].task]
        same = same if len(same) > 1 else [*range(len(self.samples))]
        return same[(same.index(number) + 1) % len(same)]

    def _text_of(self, sample: RecallSample) -> list[int]:
        tokens, places = self._tokens_and_places()
        found, last = list[int](), 0
        for sentence, place in sample.hidden:
            found += [*tokens[last : places[place]], *self.haystack.encode(f" {sentence}")]
            last = places[place]
        return found + tokens[last:]

    def _tokens_and_places(self) -> tuple[list[int], list[int]]:
        """Return the text, and positions in it: one in each of as many equal stretches in front of the window."""
        tokens = [*islice(self.haystack.tokens(self.name), self.length)]
        rng = random.Random(f"{self.settings.seed}-{self.name}-places")
        count, behind = self.settings.places, self.behind
        stretch = (self.length - self.subject.context) / count
        places = []
        for number in range(count):
            first, last = int(number * stretch), int((number + 1) * stretch) - behind
            wanted = rng.randrange(first, last)
            borders = range(wanted, last)
            at_border = (at for at in borders if at == 0 or self.haystack.ends_sentence(tokens[at - 1]))
            places.append(next(at_border, wanted))
        return tokens, places

    def _read(self, session: Session, tokens: list[int]) -> None:
        for chunk in chunks(tokens, self.settings.chunk_size):
            session.read(chunk)

    def _question(self, sample: RecallSample) -> tuple[list[int], list[int]]:
        return self.haystack.encode(sample.question), self.haystack.encode(sample.answer)

    def _ask(self, reader: Reader, sample: RecallSample, condition: str) -> dict[str, Any]:
        """Ask a fork of a reader."""
        prompt, answer = self._question(sample)
        if condition == IN_WINDOW:
            prompt = [token for text, _ in sample.hidden for token in self.haystack.encode(f" {text}")] + prompt
        ids = torch.tensor([prompt + answer[:-1]])
        return self._scored(reader.fork().logits(ids, logits_to_keep=len(answer)), sample, condition)

    def _scored(self, logits: Tensor, sample: RecallSample, condition: str) -> dict[str, Any]:
        """Return the answer, which is exact if each of its tokens is the likeliest, as in greedy decoding.

        What is `said` is the likeliest token at each place of the right answer, given the right ones before.

        Args:
            logits: `[1, answer, vocabulary]`, those at the places before the answer's tokens.
            sample: that was asked for.
            condition: in which.
        """
        _, answer = self._question(sample)
        likeliest = logits[0].argmax(dim=-1).cpu()
        right = likeliest == torch.tensor(answer)
        return {
            "condition": condition,
            "task": sample.task,
            "sample": sample.index,
            "depth": (sample.place + 0.5) / self.settings.places,
            "exact": bool(right.all()),
            "tokens_right": float(right.float().mean()),
            "expected": sample.answer.strip(),
            "said": self.haystack.decode(likeliest.tolist()).strip(),
        }
