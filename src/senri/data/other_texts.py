"""Other texts than prose to read: code, lists, the first pages of books, noise; made of what is at hand."""

import random
import re
import sysconfig
from pathlib import Path
from typing import Any

from senri.data.blocks import end_of_text
from senri.data.corpus import Corpus
from senri.data.documents import PYTHON_REFERENCE, open_document
from senri.data.packing import tokens_of
from senri.errors import SenriError

_CHARACTERS_PER_TOKEN = 8  # more than any tokenizer needs for prose
_TITLE_WORDS = 6
_ROMAN = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
_WORD = re.compile(r"[A-Za-z]{2,}")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def code_tokens(tokenizer: Any, count: int, rng: random.Random) -> list[int]:
    """Return tokens of modules of Python's own standard library, one after the other.

    Args:
        tokenizer: a tokenizer of transformers.
        count: of tokens.
        rng: decides the order of the modules.

    Raises:
        SenriError: this Python has too few modules in the form of text.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(folder.glob("*.py"))
    rng.shuffle(modules)
    ids: list[int] = []
    for module in modules:
        ids += tokens_of(module.read_text(encoding="utf-8", errors="replace"), tokenizer)
        if len(ids) >= count:
            return ids[:count]
    raise SenriError(
        f"the modules in {str(folder)!r} have {len(ids)} tokens of code, but {count} are needed: ask for less."
    )


def reference_tokens(tokenizer: Any, count: int) -> list[int]:
    """Return the first tokens of the Python language reference: prose between lists, tables and code.

    Args:
        tokenizer: a tokenizer of transformers.
        count: of tokens.

    Raises:
        SenriError: it has fewer.
    """
    ids = tokens_of("".join(open_document(PYTHON_REFERENCE).pieces()), tokenizer)
    if len(ids) < count:
        raise SenriError(f"the Python language reference has {len(ids)} tokens, but {count} are needed: ask for less.")
    return ids[:count]


def beginning_tokens(tokenizer: Any, corpus: Corpus, count: int, each: int) -> list[int]:
    """Return the beginnings of documents, the end-of-text token between them: title pages, tables of contents, verses.

    Args:
        tokenizer: a tokenizer of transformers.
        corpus: the documents.
        count: of tokens; where the corpus has fewer, what there is, again.
        each: most tokens of a document.
    """
    ids: list[int] = []
    for _, pieces in corpus.texts():
        text = ""
        for piece in pieces:
            text += piece
            if len(text) >= each * _CHARACTERS_PER_TOKEN:
                break
        ids += [*tokens_of(text[: each * _CHARACTERS_PER_TOKEN], tokenizer)[:each], end_of_text(tokenizer)]
        if len(ids) >= count:
            break
    return (ids * (count // len(ids) + 1))[:count]


def contents_tokens(tokenizer: Any, text: str, count: int, rng: random.Random, *, entries: int) -> list[int]:
    """Return tokens of tables of contents: titles, what fills the line, page numbers.

    Args:
        tokenizer: a tokenizer of transformers.
        text: where the words of titles come from.
        count: of tokens.
        rng: decides everything.
        entries: most lines of a table.

    Raises:
        SenriError: the text has no words.
    """
    words = _WORD.findall(text)
    if len(words) < _TITLE_WORDS:
        raise SenriError("tables of contents take their words from the text, but it has hardly any: give more text.")
    ids: list[int] = []
    while len(ids) < count:
        ids += tokens_of(_contents(words, rng, rng.randint(2, entries)), tokenizer)
    return ids[:count]


def _contents(words: list[str], rng: random.Random, entries: int) -> str:
    """Return a table of contents; each has its own width, filling and way to count."""
    width, fill, page = rng.randint(40, 72), rng.choice((" ", " ", ".", " .")), rng.randint(1, 30)
    numbered = rng.choice(("", "{}. ", "CHAPTER {}. ", "{}--"))
    lines = [rng.choice(("CONTENTS", "Contents.", "LIST OF ILLUSTRATIONS")), ""]
    for number in range(1, entries + 1):
        start = rng.randrange(len(words) - _TITLE_WORDS + 1)
        title = " ".join(words[start : start + rng.randint(1, _TITLE_WORDS)]).title()
        line = numbered.format(_roman(number)) + title
        lines.append(line + (fill * width)[: max(width - len(line), 2)] + str(page))
        page += rng.randint(1, 25)
    return "\n".join(lines) + "\n\n"


def _roman(number: int) -> str:
    found = ""
    for value, sign in _ROMAN:
        found += sign * (number // value)
        number %= value
    return found


def noise_tokens(
    tokenizer: Any, text: str, count: int, rng: random.Random, *, sentences: int, longest: int
) -> list[int]:
    """Return tokens of a few short sentences that are said over and over again.

    Args:
        tokenizer: a tokenizer of transformers.
        text: where the sentences come from.
        count: of tokens.
        rng: chooses the sentences.
        sentences: how many.
        longest: characters of a sentence.

    Raises:
        SenriError: the text has fewer short sentences.
    """
    every = _SENTENCE_END.split(" ".join(text.split()))
    short = sorted({one for one in every if len(one.split()) > 1 and len(one) <= longest})
    if len(short) < sentences:
        raise SenriError(
            f"noise is made of {sentences} sentences of at most {longest} characters, but the text has {len(short)}: "
            f"give more text."
        )
    once = tokens_of("".join(f" {one}" for one in rng.sample(short, sentences)), tokenizer)
    return (once * (count // len(once) + 1))[:count]
