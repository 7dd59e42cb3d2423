"""What a fact is, and how it is asked for."""

from dataclasses import dataclass
from typing import Literal, get_args

from senri.errors import SenriError, nearest

Style = Literal["question", "completion", "verbatim", "begun"]


@dataclass(frozen=True)
class Fact:
    """Something that a text says once.

    Args:
        sentence: what is hidden in the text; holds the answer word for word.
        question: asks for it.
        answer: what is to be found.
        key: whom or what it is about; no other fact of a sample is about the same.
        kind: numbers, words, uuids, codes, names or facts.
        completion: the beginning of a sentence that a blank and the answer complete.
    """

    sentence: str
    question: str
    answer: str
    key: str
    kind: str
    completion: str


def ask(fact: Fact, style: Style) -> tuple[str, str]:
    """Return what follows the text, and the answer as it continues that.

    Args:
        fact: the one asked for.
        style: as a question, as a sentence to complete, as a question whose answer has begun as that sentence does, or
            verbatim: the very sentence, up to the answer; where what it is about does not stand before the answer, as a
            sentence to complete.

    Raises:
        SenriError: an unknown style.
    """
    if style == "question":
        return f"\nQuestion: {fact.question}\nAnswer:", f" {fact.answer}"
    if style == "begun":
        return f"\n{fact.question} {fact.completion}", f" {fact.answer}"
    if style == "verbatim":
        before = fact.sentence.partition(fact.answer)[0]
        if before.endswith(" ") and fact.key.casefold() in before.casefold():
            return f"\n{before.rstrip()}", f" {fact.answer}"
        style = "completion"
    if style == "completion":
        return f"\n{fact.completion}", f" {fact.answer}"
    raise SenriError(f"there is no style {style!r} of asking: {nearest(style, get_args(Style))}")
