"""BABILong's texts: the facts of a question in their order, at random sentence borders of a book.

Source: Kuratov et al., "BABILong: Testing the Limits of LLMs with Long Context Reasoning-in-a-Haystack",
arXiv:2406.10149. Facts and book sentences are tokenised one by one and put together as tokens, so that a text is
exactly as long as asked for.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from senri.data import Document, Tokenizer
from senri.data.babi import BabiQuestion
from senri.errors import SenriError

_BORDER = re.compile(r"(?P<gap>\n[ \t]*\n)|[.!?][\"”’')\]]*(?=\s+[\"“‘'(\[]*(?P<next>\w))")
_ABBREVIATIONS = frozenset(
    ("capt", "col", "dr", "esq", "gen", "hon", "messrs", "mme", "mr", "mrs", "ms", "no", "prof", "rev", "st", "vol")
)
# A text without any border is cut after so many characters.
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Haystack:
    """One text to read, and its control.

    Args:
        text: tokens with the facts in them.
        control: as many tokens of the same book without them; for a text of facts alone, none.
    """

    text: list[int]
    control: list[int]


def fact_tokens(question: BabiQuestion, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the tokens of each fact, a blank before it."""
    return [_tokens(f" {fact}", tokenizer) for fact in question.facts]


def facts_alone(question: BabiQuestion, tokenizer: Tokenizer) -> Haystack:
    """Return a question's facts without any book."""
    return Haystack([token for fact in fact_tokens(question, tokenizer) for token in fact], [])


def mix(
    question: BabiQuestion, book: Document, length: int, tokenizer: Tokenizer, generator: random.Random
) -> Haystack:
    """Put a question's facts among the sentences of a book, which begins at a random place of its own.

    Facts keep their order; each stands before a sentence drawn at random, so that several may stand together. The last
    sentence of the book is cut to fit.

    Args:
        question: whose facts are hidden.
        book: the text around them. Line breaks within a paragraph become blanks; after its end it begins anew.
        length: tokens of the text, facts included.
        tokenizer: makes the tokens.
        generator: draws the book's beginning and the facts' places.

    Raises:
        SenriError: the facts alone are longer than `length`, or the book is shorter.
    """
    facts = fact_tokens(question, tokenizer)
    room = length - sum(map(len, facts))
    if room < 0:
        raise SenriError(f"a question's facts are {length - room} tokens, longer than the {length} of the whole text.")
    control = book_tokens(book, length, tokenizer, generator.randrange(book.characters))
    sentences = _cut(control, room)
    places = sorted(generator.choices(range(max(len(sentences), 1)), k=len(facts)))
    standing: dict[int, list[list[int]]] = {}
    for place, fact in zip(places, facts, strict=True):
        standing.setdefault(place, []).append(fact)
    parts = [part for place, one in enumerate(sentences or [[]]) for part in (*standing.get(place, ()), one)]
    return Haystack(_flat(parts), _flat(control))


def book_tokens(book: Document, tokens: int, tokenizer: Tokenizer, start: int) -> list[list[int]]:
    """Return the tokens of sentences, `tokens` in all, from the first sentence that begins after a place.

    After its end the book begins anew, once.

    Args:
        book: the text.
        tokens: how many.
        tokenizer: makes them.
        start: characters before the place.

    Raises:
        SenriError: there are fewer; from a `start` of 0 on, that is when the whole book is shorter.
    """
    rest = sentences(_from(book, start))
    again: Iterator[str] = iter(())
    if start:
        next(rest, None)  # cut into at its beginning
        again = sentences(book.pieces())
    found: list[list[int]] = []
    missing = tokens
    for sentence in chain(rest, again):
        if missing <= 0:
            break
        found.append(_tokens(sentence, tokenizer))
        missing -= len(found[-1])
    if missing > 0:
        raise SenriError(
            f"text {book.name!r} has fewer than {tokens} tokens: name a longer one, or shorten the lengths."
        )
    return _cut(found, tokens)


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """Cut a text into sentences: a blank before each, an empty line before the first of a paragraph.

    A sentence ends at a full stop, question or exclamation mark before a capital (but not after an abbreviation or an
    initial), or at an empty line.

    Args:
        pieces: the text, in pieces of any size.
    """
    rest = ""
    for piece in pieces:
        rest += piece
        start = 0
        for border in _BORDER.finditer(rest):
            if border["gap"] is None and not _ends_sentence(rest, border):
                continue
            end = border.start() if border["gap"] else border.end()
            yield from _tidy(rest[start:end])
            start = end
        rest = rest[start:]
        if len(rest) > _LONGEST:
            yield from _tidy(rest)
            rest = ""
    yield from _tidy(rest)


def _ends_sentence(text: str, border: re.Match[str]) -> bool:
    if border["next"].islower():
        return False
    if text[border.start()] != ".":
        return True
    word = re.search(r"\w*$", text[max(border.start() - 10, 0) : border.start()])
    return word is None or (len(word[0]) != 1 and word[0].lower() not in _ABBREVIATIONS)


def _tidy(sentence: str) -> Iterator[str]:
    """Yield the sentence on one line, unless it is empty."""
    words = sentence.split()
    if words:
        lead = sentence[: len(sentence) - len(sentence.lstrip())]
        yield ("\n\n" if lead.count("\n") > 1 else " ") + " ".join(words)


def _from(book: Document, start: int) -> Iterator[str]:
    """Yield the book without its first `start` characters."""
    passed = 0
    for piece in book.pieces():
        yield piece[max(start - passed, 0) :]
        passed += len(piece)


def _cut(sentences: list[list[int]], tokens: int) -> list[list[int]]:
    """Return so many tokens from the start, the last sentence cut to fit."""
    kept: list[list[int]] = []
    for sentence in sentences:
        if tokens <= 0:
            break
        kept.append(sentence[:tokens])
        tokens -= len(kept[-1])
    return kept


def _tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _flat(parts: Iterable[list[int]]) -> list[int]:
    return [token for part in parts for token in part]
