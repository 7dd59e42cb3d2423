"""Code and noise to read: what a memory meets in use beside prose, made of what is at hand."""

import random
import re
import sysconfig
from pathlib import Path
from typing import Any

from senri.errors import SenriError

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
        ids += _encode(tokenizer, module.read_text(encoding="utf-8", errors="replace"))
        if len(ids) >= count:
            return ids[:count]
    raise SenriError(
        f"the modules in {str(folder)!r} have {len(ids)} tokens of code, but {count} are needed: ask for less."
    )


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
    short = [one for one in _SENTENCE_END.split(" ".join(text.split()))]
    short = sorted({one for one in short if len(one.split()) > 1 and len(one) <= longest})
    if len(short) < sentences:
        raise SenriError(
            f"noise is made of {sentences} sentences of at most {longest} characters, but the text has {len(short)}: "
            f"give more text."
        )
    once = _encode(tokenizer, "".join(f" {one}" for one in rng.sample(short, sentences)))
    return (once * (count // len(once) + 1))[:count]


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
