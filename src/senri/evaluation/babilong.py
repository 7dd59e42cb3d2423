"""BABILong: questions whose facts are scattered over a book, at several lengths, with and without the facts.

Source: Kuratov et al., "BABILong: Testing the Limits of LLMs with Long Context Reasoning-in-a-Haystack",
arXiv:2406.10149. The same questions are asked at every length, so that only the book grows. Two controls belong to it:
the facts alone (length 0) show whether the model can answer at all, and the same book without the facts shows what
guessing gives.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from senri.data import Document, chunks, open_document
from senri.data.babi import BABI_TASKS, BabiQuestion, read_babi
from senri.errors import SenriError, nearest
from senri.evaluation.babilong_prompts import TASK_PROMPTS, InstructionPlace, is_correct
from senri.evaluation.babilong_text import book_tokens, fact_tokens, facts_alone, mix
from senri.evaluation.charts import heat_map_figure, short_count
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit

FACTS_ALONE, FACTS_LEFT_OUT, MEAN = "facts alone", "facts left out", "mean"
_STANDARD_ERRORS = 2.0


@dataclass
class BabilongSettings:
    """What the section `babilong` holds; `config/evaluation.yaml` says what each is.

    Args:
        tasks: names of `BABI_TASKS`.
        lengths: tokens of the text, facts included; 0 (the facts alone) is always measured as well.
        samples: questions of each task.
        babi: folder with bAbI's files; None for the Hub.
        text: file or folder of the book text; None for the Python language reference.
        instruction: whether instruction and examples stand after the text, or before it as in the paper.
        max_new_tokens: longest answer.
        chunk_size: tokens of one forward pass.
        seed: of the choice of questions, of the book's passages and of the facts' places.

    Raises:
        SenriError: an unknown task, a list that is empty or names something twice, or a number out of range.
    """

    tasks: list[str]
    lengths: list[int]
    samples: int
    babi: str | None
    text: str | None
    instruction: InstructionPlace
    max_new_tokens: int
    chunk_size: int
    seed: int

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in BABI_TASKS:
                raise SenriError(f"tasks names {task!r}, which BABILong has not here: {nearest(task, BABI_TASKS)}")
        for name, values in (("tasks", self.tasks), ("lengths", self.lengths)):
            if not values or len({*values}) < len(values):
                raise SenriError(f"{name} is {values}, but it must name at least one, and none twice.")
        if min(self.lengths) < 0:
            raise SenriError(f"lengths has {min(self.lengths)}, but a length is 0 (the facts alone) or more.")
        for name in ("samples", "max_new_tokens", "chunk_size"):
            if getattr(self, name) < 1:
                raise SenriError(f"{name} is {getattr(self, name)}, but it must be at least 1.")

    @property
    def all_lengths(self) -> list[int]:
        """The lengths with 0 among them, ascending."""
        return sorted({0, *self.lengths})


def babilong_units(subject: Subject, settings: BabilongSettings) -> list[Unit]:
    """Return a unit for every task, length and question. Each reads one text with the facts and one without.

    Raises:
        SenriError: bAbI or the book cannot be read, the book is shorter than the longest text, or too few questions fit
            into the shortest.
    """
    book = open_document(settings.text)
    book_tokens(book, max(settings.lengths), subject.tokenizer, start=0)
    units = []
    for task in settings.tasks:
        questions = _chosen(subject, settings, task)
        for length in settings.all_lengths:
            for index, question in enumerate(questions):
                run = partial(_ask, subject, settings, book, task, length, index, question)
                prompt = TASK_PROMPTS[task].around(question.question, settings.instruction)
                asked = sum(len(_tokens(subject, part)) for part in prompt)
                # Text and control; with the facts alone, the control is empty.
                texts = 2 * length if length else sum(map(len, fact_tokens(question, subject.tokenizer)))
                size = texts + 2 * asked
                units.append(Unit(f"{task}/{length}/{index}", size, run))
    return units


def babilong_outcome(subject: Subject, settings: BabilongSettings, results: list[dict[str, Any]]) -> Outcome:
    """Count right answers by task and length, with the facts and without."""
    lengths, columns = settings.all_lengths, [_name(length) for length in settings.all_lengths]
    right = _shares(settings, results, "correct")
    guessed = _shares(settings, results, "control_correct")
    tables = [
        Table("Right answers", ("task", *columns), _rows(right, settings.samples), _note(settings)),
        Table(
            f"Control: {FACTS_LEFT_OUT}",
            ("task", *columns),
            _rows(guessed, settings.samples),
            "The same questions after the same book without the facts: what guessing gives.",
        ),
    ]
    shown = np.array([*right.values(), guessed[MEAN]])
    rows = [*(task.upper() for task in settings.tasks), MEAN, FACTS_LEFT_OUT]
    figure = heat_map_figure({"Right answers (%)": shown}, columns, rows, "tokens of the text", "task", "right answers")
    longest = lengths[-1]
    return Outcome(
        headline=f"{right[MEAN][-1]:.0%} at {_name(longest)} ({FACTS_LEFT_OUT} {guessed[MEAN][-1]:.0%})",
        results={
            "accuracy": {task: dict(zip(map(str, lengths), values, strict=True)) for task, values in right.items()},
            "facts_left_out": {
                task: dict(zip(map(str, lengths), values, strict=True)) for task, values in guessed.items()
            },
            "samples": results,
        },
        counts={
            "samples": len(results),
            "tokens": sum(result["tokens"] for result in results),
            "reads": sum(result["reads"] for result in results),
        },
        summary=[
            f"{_sentence(right[MEAN], lengths)}; with the {FACTS_LEFT_OUT}, {_sentence(guessed[MEAN], lengths)} "
            f"(mean of {len(settings.tasks)} task(s), {settings.samples} questions each).",
        ],
        warnings=_warnings(subject, settings, right, guessed),
        tables=tables,
        pictures=[
            Picture(
                "babilong",
                figure,
                f"Right answers by task and length of the text. Last row: the mean with the {FACTS_LEFT_OUT}.",
            )
        ],
    )


def _chosen(subject: Subject, settings: BabilongSettings, task: str) -> list[BabiQuestion]:
    """Draw a task's questions, the same for every length, among those whose facts fit into the shortest book."""
    questions = read_babi(task, settings.babi)
    labels = TASK_PROMPTS[task].labels
    random.Random(f"{settings.seed}-{task}").shuffle(questions)
    room = min((length for length in settings.lengths if length), default=math.inf)
    chosen: list[BabiQuestion] = []
    for question in questions:
        if question.answer not in labels:
            raise SenriError(
                f"bAbI's {task} has the answer {question.answer!r}, but BABILong's are {', '.join(sorted(labels))}: "
                "name the folder of bAbI's English files."
            )
        if sum(map(len, fact_tokens(question, subject.tokenizer))) <= room:
            chosen.append(question)
        if len(chosen) == settings.samples:
            return chosen
    fitting = "" if room == math.inf else f" whose facts fit into {room} tokens"
    raise SenriError(
        f"samples is {settings.samples}, but {task} has only {len(chosen)} questions{fitting}: ask for fewer, or for "
        "longer texts."
    )


def _ask(
    subject: Subject,
    settings: BabilongSettings,
    book: Document,
    task: str,
    length: int,
    index: int,
    question: BabiQuestion,
    scratch: Scratch,
) -> dict[str, Any]:
    if length:
        generator = random.Random(f"{settings.seed}-{task}-{length}-{index}")
        haystack = mix(question, book, length, subject.tokenizer, generator)
    else:
        haystack = facts_alone(question, subject.tokenizer)
    prompt = TASK_PROMPTS[task]
    before, after = (_tokens(subject, part) for part in prompt.around(question.question, settings.instruction))
    output, tokens = _answer(subject, settings, [*before, *haystack.text, *after], scratch.advance)
    guess, guess_tokens = _answer(subject, settings, [*before, *haystack.control, *after], scratch.advance)
    return {
        "task": task,
        "length": length,
        "question": question.question,
        "expected": question.answer,
        "output": output,
        "correct": is_correct(question, output, prompt.labels),
        "control_output": guess,
        "control_correct": is_correct(question, guess, prompt.labels),
        "tokens": tokens + guess_tokens,
        "reads": 2,
    }


def _answer(
    subject: Subject, settings: BabilongSettings, ids: list[int], advance: Callable[[int], None]
) -> tuple[str, int]:
    """Read all tokens in chunks and generate; return what was generated, and how many tokens went through the model."""
    reader = subject.reader()
    begin = reader.tokens_read
    for chunk in chunks(ids[:-1], settings.chunk_size):
        reader.read(chunk)
        advance(chunk.shape[1])
    # Generation reads its prompt in one piece; the last token alone is one that no chunk size forbids.
    last = torch.tensor([ids[-1:]])
    new = reader.generate(last, max_new_tokens=settings.max_new_tokens, do_sample=False)
    advance(1)
    return subject.tokenizer.decode(new[0].tolist(), skip_special_tokens=True), reader.tokens_read - begin


def _tokens(subject: Subject, text: str) -> list[int]:
    ids: list[int] = subject.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _shares(settings: BabilongSettings, results: list[dict[str, Any]], field: str) -> dict[str, list[float]]:
    """Return the share of right answers by task and length, and the mean of the tasks."""
    shares = {
        task: [
            float(np.mean([one[field] for one in results if one["task"] == task and one["length"] == length]))
            for length in settings.all_lengths
        ]
        for task in settings.tasks
    }
    return {**shares, MEAN: [float(value) for value in np.mean([*shares.values()], axis=0)]}


def _rows(shares: dict[str, list[float]], samples: int) -> list[list[str]]:
    rows = []
    for task, values in shares.items():
        name = task if task == MEAN else f"{task.upper()} ({BABI_TASKS[task]})"
        counts = [""] * len(values) if task == MEAN else [f" ({round(value * samples)}/{samples})" for value in values]
        rows.append([name, *(f"{value:.0%}{count}" for value, count in zip(values, counts, strict=True))])
    return rows


def _note(settings: BabilongSettings) -> str:
    error = 1 / (2 * math.sqrt(settings.samples))
    return (
        f"{FACTS_ALONE.capitalize()}: no book around them. With {settings.samples} questions, a cell's standard error "
        f"is up to {100 * error:.0f} points. Scored as in BABILong: the first sentence names the right label and no "
        "other."
    )


def _name(length: int) -> str:
    return short_count(length) if length else FACTS_ALONE


def _sentence(means: Sequence[float], lengths: Sequence[int]) -> str:
    return ", ".join(f"{mean:.0%} at {_name(length)}" for mean, length in zip(means, lengths, strict=True))


def _warnings(
    subject: Subject, settings: BabilongSettings, right: dict[str, list[float]], guessed: dict[str, list[float]]
) -> list[str]:
    found = []
    weak = [
        task.upper()
        for task in settings.tasks
        if right[task][0] - guessed[task][0]
        <= _STANDARD_ERRORS * _error_of_difference(right[task][0], guessed[task][0], settings.samples)
    ]
    if weak:
        found.append(
            f"{', '.join(weak)}: with the {FACTS_ALONE} the model is not measurably better than with the "
            f"{FACTS_LEFT_OUT}, so longer texts say nothing about its memory there."
        )
    if not subject.is_senri and settings.all_lengths[-1] > subject.context:
        found.append(
            f"texts of more than {subject.context:,} tokens are longer than what {subject.name} was made for: "
            "read its answers there as those of a model beyond its context."
        )
    return found


def _error_of_difference(first: float, second: float, samples: int) -> float:
    pooled = (first + second) / 2
    return math.sqrt(2 * pooled * (1 - pooled) / samples)
