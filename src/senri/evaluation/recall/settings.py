"""Settings of the recall test."""

from dataclasses import dataclass
from typing import Literal

from senri.errors import SenriError, nearest
from senri.evaluation.needle.settings import NeedleFormat, Values

Reading = Literal["shared", "full"]


@dataclass
class RecallTask:
    """What one task hides and asks for.

    Args:
        haystack: noise or books.
        values: of keys, in the wording of the settings; or facts, ordinary sentences with paraphrased questions.
        hidden: how many are hidden, one of which is asked for.
    """

    haystack: Literal["noise", "books"]
    values: Values | Literal["facts"]
    hidden: int

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise SenriError(f"hidden is {self.hidden}, but a task hides at least 1.")


@dataclass
class RecallSettings:
    """What the section `recall` holds; `config/evaluation.yaml` says what each is.

    Raises:
        SenriError: a value out of range, or a task that is not described.
    """

    tasks: list[str]
    described: dict[str, RecallTask]
    wording: NeedleFormat
    text: str | None
    noise: str
    lengths: list[int]
    samples: int
    reading: Reading
    places: int
    behind: int
    chunk_size: int
    block_characters: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("tasks", "lengths"):
            if not getattr(self, name):
                raise SenriError(f"{name} is empty: name at least one.")
            if len({*getattr(self, name)}) != len(getattr(self, name)):
                raise SenriError(f"{name} names something twice: {getattr(self, name)}.")
        for task in self.tasks:
            if task not in self.described:
                raise SenriError(f"tasks has {task!r}, which is not described: {nearest(task, self.described)}")
        for name in ("samples", "places", "behind", "chunk_size", "block_characters"):
            if getattr(self, name) < 1:
                raise SenriError(f"{name} is {getattr(self, name)}, but it must be at least 1.")
        most = max(self.described[task].hidden for task in self.tasks)
        if self.places < most:
            raise SenriError(f"places is {self.places}, fewer than the {most} things that a task hides: raise it.")
