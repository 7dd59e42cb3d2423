"""Settings of the needle test."""

from dataclasses import dataclass
from typing import Literal, get_args

from senri.errors import SenriError, nearest

Kind = Literal["single", "multi_key", "multi_value", "multi_query"]
Values = Literal["numbers", "words", "uuids", "codes"]


@dataclass
class NeedleFormat:
    """How a needle and its question are worded.

    Args:
        needle: the sentence that is hidden, with {value} and, unless a text holds one needle only, {key}; {kind} is
            what a value is called.
        question: what follows the text when one value is asked for; ends where the answer begins.
        questions: the same for several values; {keys} names them all.
    """

    needle: str
    question: str
    questions: str

    def __post_init__(self) -> None:
        if "{value}" not in self.needle:
            raise SenriError(f"the needle {self.needle!r} has no {{value}}: say where the value stands.")
        if self.has_key and ("{key}" not in self.question or "{keys}" not in self.questions):
            raise SenriError("the needle has a {key}, so question needs {key} and questions needs {keys}.")

    @property
    def has_key(self) -> bool:
        """Whether needles have names, so that several fit into one text."""
        return "{key}" in self.needle


@dataclass
class NeedleSettings:
    """What the section `needle` holds; `config/evaluation.yaml` says what each is.

    Raises:
        SenriError: a value out of range, or a format that does not go with the kind or the way of reading.
    """

    kinds: list[Kind]
    values: Values
    haystack: str
    lengths: list[int]
    depths: list[float]
    samples: int
    reading: Literal["shared", "separate"]
    format: str
    formats: dict[str, NeedleFormat]
    noise: str
    distractors: int
    values_per_key: int
    keys_per_question: int
    extra_answer_tokens: int
    window_only_tokens: int
    chunk_size: int
    block_characters: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("kinds", "lengths", "depths"):
            if not getattr(self, name):
                raise SenriError(f"{name} is empty: name at least one.")
            if len({*getattr(self, name)}) != len(getattr(self, name)):
                raise SenriError(f"{name} names something twice: {getattr(self, name)}.")
        least = {
            "samples": 1,
            "distractors": 1,
            "values_per_key": 2,
            "keys_per_question": 2,
            "extra_answer_tokens": 0,
            "window_only_tokens": 1,
            "chunk_size": 1,
            "block_characters": 1,
        }
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise SenriError(f"{name} is {getattr(self, name)}, but it must be at least {smallest}.")
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise SenriError(f"depths has {depth}, but a depth is from 0 (the beginning) to 1 (the end).")
        if min(self.lengths) < 1:
            raise SenriError(f"lengths has {min(self.lengths)}, but a text has at least 1 token.")
        if self.format not in self.formats:
            raise SenriError(
                f"format is {self.format!r}, which formats does not have: {nearest(self.format, self.formats)}"
            )
        if not self.chosen.has_key and (self.reading == "shared" or self.kinds != ["single"]):
            raise SenriError(
                f"needles of the format {self.format!r} have no {{key}}, so a text holds one of them: set "
                f"reading=separate and kinds=[single]."
            )
        assert all(kind in get_args(Kind) for kind in self.kinds)

    @property
    def chosen(self) -> NeedleFormat:
        """The format in use."""
        return self.formats[self.format]
