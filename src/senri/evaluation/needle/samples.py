"""Samples of the needle test: which needles lie where, and what is asked; all decided by the seed."""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from senri.evaluation.needle.settings import Kind, NeedleFormat, NeedleSettings, Values

_NAMES = {"numbers": "number", "words": "word", "uuids": "UUID", "codes": "key"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, and where: 0 is the beginning of the text, 1 its end."""

    sentence: str
    depth: float


@dataclass(frozen=True)
class Question:
    """What is asked after the text.

    Attributes:
        depth: of the needle asked for (of several, that of the first).
        text: the question, which ends where the answer begins.
        answers: all values that are right, in the order of the keys asked for.
        needles: the needles that hold them; together with others in one text when reading is shared.
    """

    depth: float
    text: str
    answers: tuple[str, ...]
    needles: tuple[Needle, ...]


@dataclass(frozen=True)
class Sample:
    """One text's needles and questions.

    Attributes:
        questions: one for each depth.
        distractors: further needles that nobody asks for.
        left_out: questions of the same kind whose needles are in no text.
    """

    questions: tuple[Question, ...]
    distractors: tuple[Needle, ...]
    left_out: tuple[Question, ...]


def make_sample(settings: NeedleSettings, kind: Kind, length: int, index: int) -> Sample:
    """Make the needles and questions of one text.

    Args:
        settings: of the needle test.
        kind: of needles.
        length: of the text, in tokens; samples of different lengths have different needles.
        index: of the sample.
    """
    rng = random.Random(f"{settings.seed}-{kind}-{settings.values}-{length}-{index}")
    new_key, new_value = _unused(rng, _key), _unused(rng, _makers()[settings.values])
    questions = tuple(_question(settings, kind, depth, rng, new_key, new_value) for depth in settings.depths)
    left_out = tuple(_question(settings, kind, depth, rng, new_key, new_value) for depth in settings.depths)
    count = settings.distractors if kind == "multi_key" else 0
    distractors = tuple(
        Needle(_sentence(settings.chosen, settings.values, new_key(), new_value()), rng.random()) for _ in range(count)
    )
    return Sample(questions, distractors, left_out)


def make_single_questions(
    wording: NeedleFormat, values: Values, count: int, rng: random.Random
) -> tuple[Question, ...]:
    """Make needles at random depths that fit into one text, each with the question that asks for it alone.

    Args:
        wording: of needle and question; needs a {key} where `count` is above 1.
        values: what is hidden.
        count: how many.
        rng: decides all of it.
    """
    new_key, new_value = _unused(rng, _key), _unused(rng, _makers()[values])
    questions = []
    for _ in range(count):
        key, value, depth = new_key(), new_value(), rng.random()
        needle = Needle(_sentence(wording, values, key, value), depth)
        text = wording.question.format(kind=_NAMES[values], key=key)
        questions.append(Question(depth, text, (value,), (needle,)))
    return tuple(questions)


def _question(
    settings: NeedleSettings,
    kind: Kind,
    depth: float,
    rng: random.Random,
    new_key: Callable[[], str],
    new_value: Callable[[], str],
) -> Question:
    keys = [new_key() for _ in range(settings.keys_per_question if kind == "multi_query" else 1)]
    each = settings.values_per_key if kind == "multi_value" else 1
    facts = [(key, new_value()) for key in keys for _ in range(each)]
    # The first needle lies at the depth of the grid, the others of the same question anywhere.
    depths = [depth, *(rng.random() for _ in facts[1:])]
    needles = tuple(
        Needle(_sentence(settings.chosen, settings.values, key, value), place)
        for (key, value), place in zip(facts, depths, strict=True)
    )
    name = _NAMES[settings.values]
    if len(facts) == 1:
        text = settings.chosen.question.format(kind=name, key=keys[0])
    else:
        text = settings.chosen.questions.format(kind=name, keys=_listed(keys))
    return Question(depth, text, tuple(value for _, value in facts), needles)


def _sentence(wording: NeedleFormat, values: Values, key: str, value: str) -> str:
    return wording.needle.format(kind=_NAMES[values], key=key, value=value)


def _listed(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"


def _unused(rng: random.Random, make: Callable[[random.Random], str]) -> Callable[[], str]:
    """Return a function that makes a new one each time, so that no two needles of a text share a key or a value."""
    used: set[str] = set()

    def new() -> str:
        while (made := make(rng)) in used:
            pass
        used.add(made)
        return made

    return new


def _key(rng: random.Random) -> str:
    adjectives, nouns = _words()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


def _makers() -> dict[Values, Callable[[random.Random], str]]:
    return {
        "numbers": lambda rng: str(rng.randrange(10**6, 10**7)),
        "words": _key,
        "uuids": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "codes": lambda rng: f"KEY-{''.join(rng.choices(_LETTERS, k=3))}{rng.randrange(10**5):05d}",
    }


@cache
def _words() -> tuple[list[str], list[str]]:
    lines = files("senri.evaluation.needle").joinpath("words.txt").read_text(encoding="utf-8").splitlines()
    return lines[0].split(), lines[1].split()
