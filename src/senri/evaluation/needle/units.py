"""Reading the texts of a needle test and asking: one unit is one text.

Shared reading: the needles of all depths lie in one text, which is read once; every question is then asked of a fork of
the session, so a grid's column costs one reading. Separate reading: each depth has a text of its own with its needles
alone. Those texts are equal up to the needle, so that part is read once and forked at every depth.

Controls, for every question:

- no memory: the memory is switched off while the text is read and the question asked; a model without one sees only the
  last `window_only_tokens` tokens of the text.
- left out: a question of the same form whose needle is not in the text.
- other sample: the question of another sample, whose needle is not in the text.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from senri.data import chunks
from senri.evaluation.footprint import process_bytes
from senri.evaluation.needle.samples import Needle, Question, Sample, make_sample
from senri.evaluation.needle.settings import Kind, NeedleSettings
from senri.evaluation.needle.text import Haystack, hide, open_haystack
from senri.evaluation.reader import Reader, without_memory
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit

MEMORY, NO_MEMORY, LEFT_OUT, OTHER_SAMPLE = "memory", "no memory", "left out", "other sample"
CONDITIONS = (MEMORY, NO_MEMORY, LEFT_OUT, OTHER_SAMPLE)


@dataclass(frozen=True)
class Answer:
    """How one question was answered.

    Attributes:
        condition: with memory, or which control.
        depth: of the needle.
        exact: whether every value was given.
        found: share of the values that were given.
        tokens_right: share of the answer's tokens that are the likeliest, given the question and the tokens before.
        expected: the values.
        said: what the model generated; the values themselves where each of their tokens is the likeliest.
    """

    condition: str
    depth: float
    exact: bool
    found: float
    tokens_right: float
    expected: str
    said: str


def needle_units(subject: Subject, settings: NeedleSettings) -> list[Unit]:
    """Return a unit for every text: kind, length and sample. The longest come first, so that a wrong size shows early.

    Raises:
        SenriError: a text that cannot be read, or one too short for its needles.
    """
    haystack = open_haystack(settings, subject.tokenizer)
    texts = [
        _Text(subject, settings, haystack, kind, length, index)
        for length in sorted(settings.lengths, reverse=True)
        for kind in settings.kinds
        for index in range(settings.samples)
    ]
    for text in texts:
        text.check_room()
    return [Unit(text.name, _work(subject, settings, text.length), text.run) for text in texts]


def ask(reader: Reader, haystack: Haystack, question: Question, condition: str, extra_tokens: int) -> Answer:
    """Ask a fork of a reader, and leave the reader as it is.

    Args:
        reader: what has read the text.
        haystack: knows the tokenizer.
        question: what is asked.
        condition: for the record.
        extra_tokens: how many tokens an answer may be longer than the right one.
    """
    prompt = haystack.encode(question.text)
    expected = ", ".join(question.answers)
    answer = haystack.encode(f" {expected}")
    logits = reader.fork().logits(torch.tensor([prompt + answer[:-1]]), logits_to_keep=len(answer))[0]
    right = (logits.argmax(dim=-1).cpu() == torch.tensor(answer)).float()
    if bool(right.all()):
        said, found = expected, 1.0  # greedy decoding says exactly this
    else:
        limit = len(answer) + extra_tokens
        new = reader.fork().generate(torch.tensor([prompt]), max_new_tokens=limit, do_sample=False)
        said = haystack.decode(new[0].tolist())
        found = sum(value in said for value in question.answers) / len(question.answers)
    return Answer(condition, question.depth, found == 1.0, found, float(right.mean()), expected, said)


class _Text:
    """One text: kind, length and sample."""

    def __init__(
        self, subject: Subject, settings: NeedleSettings, haystack: Haystack, kind: Kind, length: int, index: int
    ) -> None:
        self.subject, self.settings, self.haystack = subject, settings, haystack
        self.kind, self.length, self.index = kind, length, index
        self.name = f"{kind}-{length}-{index}"
        self.sample = make_sample(settings, kind, length, index)
        self.other = make_sample(settings, kind, length, index + 1)

    def check_room(self) -> None:
        """Raise SenriError where the text is too short for its needles."""
        shared = self.settings.reading == "shared"
        groups = [_shared_needles(self.sample)] if shared else map(self._needles, self.sample.questions)
        for needles in groups:
            self._text(needles)

    def run(self, scratch: Scratch) -> dict[str, Any]:
        """Read and ask, with memory and without."""
        kept = scratch.kept(self.subject.model)
        progress = _Progress() if kept is None else _Progress(**kept[1])
        resumed = None if kept is None else kept[0]
        read_and_ask = self._shared if self.settings.reading == "shared" else self._separate
        if progress.condition == MEMORY:
            read_and_ask(progress, scratch, resumed)
            progress.condition, progress.position, resumed = NO_MEMORY, 0, None
        else:
            scratch.advance(self.length)
        if self.subject.is_senri:
            with without_memory(self.subject.model):
                read_and_ask(progress, scratch, resumed)
        else:
            self._window_only(progress)
        return {
            "kind": self.kind,
            "length": self.length,
            "sample": self.index,
            "reads": progress.reads,
            "tokens_read": progress.tokens_read,
            "process_bytes": process_bytes(),
            "answers": progress.answers,
        }

    def _shared(self, progress: "_Progress", scratch: Scratch, resumed: Reader | None) -> None:
        reader = self.subject.reader() if resumed is None else resumed
        scratch.advance(progress.position)
        tokens = self._text(_shared_needles(self.sample), progress.position)
        for chunk in chunks(tokens, self.settings.chunk_size):
            self._read(reader, chunk, progress, scratch)
            progress.position += chunk.shape[1]
            scratch.keep(reader, lambda: asdict(progress))
        progress.reads[progress.condition] = progress.reads.get(progress.condition, 0) + 1
        self._ask(reader, self.sample.questions, progress.condition, progress)
        if progress.condition == MEMORY:
            self._ask(reader, self.sample.left_out, LEFT_OUT, progress)
            self._ask(reader, self.other.questions, OTHER_SAMPLE, progress)

    def _separate(self, progress: "_Progress", scratch: Scratch, _resumed: Reader | None) -> None:
        """Read each depth's text from where it parts from the haystack alone, which the trunk reads once."""
        trunk, at = self.subject.reader(), 0
        plain = self._text(())
        texts = [(question, self._needles(question)) for question in self.sample.questions]
        for question, needles in sorted(texts, key=lambda text: self._common_start(text[1])):
            begin = self._common_start(needles)
            for chunk in chunks(islice(plain, begin - at), self.settings.chunk_size):
                self._read(trunk, chunk, progress, scratch)
            at, branch = begin, trunk.fork()
            for chunk in chunks(self._text(needles, begin), self.settings.chunk_size):
                self._read(branch, chunk, progress, scratch)
            self._ask(branch, (question,), progress.condition, progress)
            if progress.condition == MEMORY:
                self._ask(branch, self._of_other(question), OTHER_SAMPLE, progress)
        for chunk in chunks(plain, self.settings.chunk_size):
            self._read(trunk, chunk, progress, scratch)
        progress.reads[progress.condition] = 1 + len(texts)
        if progress.condition == MEMORY:
            self._ask(trunk, self.sample.questions, LEFT_OUT, progress)

    def _window_only(self, progress: "_Progress") -> None:
        """Show a model without memory the last tokens of each text alone."""
        shared = self.settings.reading == "shared"
        groups = [self.sample.questions] if shared else [(question,) for question in self.sample.questions]
        for questions in groups:
            needles = _shared_needles(self.sample) if shared else self._needles(questions[0])
            last = deque(self._text(needles), maxlen=self.settings.window_only_tokens)
            reader = self.subject.reader()
            reader.read(torch.tensor([list(last)]))
            self._ask(reader, questions, NO_MEMORY, progress)

    def _text(self, needles: Sequence[Needle], start: int = 0) -> Iterator[int]:
        return hide(self.haystack, self.name, needles, self.length, start)

    def _needles(self, question: Question) -> tuple[Needle, ...]:
        return (*question.needles, *self.sample.distractors)

    def _of_other(self, question: Question) -> list[Question]:
        return [one for one in self.other.questions if one.depth == question.depth]

    def _common_start(self, needles: Sequence[Needle]) -> int:
        """Return how many tokens a text certainly shares with the haystack alone."""
        room = self.length - sum(len(self.haystack.encode(f" {needle.sentence}")) for needle in needles)
        return round(min(needle.depth for needle in needles) * room)

    def _read(self, reader: Reader, chunk: Tensor, progress: "_Progress", scratch: Scratch) -> None:
        reader.read(chunk)
        progress.tokens_read += chunk.shape[1]
        scratch.advance(chunk.shape[1])

    def _ask(self, reader: Reader, questions: Sequence[Question], condition: str, progress: "_Progress") -> None:
        extra = self.settings.extra_answer_tokens
        answers = [ask(reader, self.haystack, question, condition, extra) for question in questions]
        progress.answers.extend(asdict(answer) for answer in answers)


@dataclass
class _Progress:
    """How far the work on one text has come; kept beside the session when reading is interrupted.

    Attributes:
        condition: with memory, or the control without.
        position: tokens of the text read in this condition.
        reads: finished readings of a text, by condition.
        tokens_read: in all.
        answers: so far, as plain data.
    """

    condition: str = MEMORY
    position: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    tokens_read: int = 0
    answers: list[dict[str, Any]] = field(default_factory=list)


def _shared_needles(sample: Sample) -> list[Needle]:
    return [*(needle for question in sample.questions for needle in question.needles), *sample.distractors]


def _work(subject: Subject, settings: NeedleSettings, length: int) -> int:
    """Return about how many tokens a text's readings take."""
    one = length if settings.reading == "shared" else round(length * (1 + sum(1 - depth for depth in settings.depths)))
    return 2 * one if subject.is_senri else one
