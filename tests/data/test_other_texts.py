"""Code of Python's own library, and a few sentences that are said over and over."""

import random
from typing import Any

import pytest

from senri.data.other_texts import code_tokens, contents_tokens, noise_tokens, reference_tokens
from senri.errors import SenriError


def characters(text: str, **_: Any) -> dict[str, list[int]]:
    return {"input_ids": [*map(ord, text)]}


def said(ids: list[int]) -> str:
    return "".join(map(chr, ids))


TEXT = "It rained. The long sentence goes on for more than twenty characters. Nobody came! Why? Was it late?"


def test_noise_is_short_sentences_again_and_again() -> None:
    noise = said(noise_tokens(characters, TEXT, 100, random.Random(0), sentences=3, longest=20))
    assert len(noise) == 100
    once = " It rained. Nobody came! Was it late?"
    assert sorted(noise[: len(once)].replace("?", ".").replace("!", ".").split(".")) == sorted(
        once.replace("?", ".").replace("!", ".").split(".")
    )
    assert noise[len(once) : 2 * len(once)] == noise[: len(once)]
    orders = {said(noise_tokens(characters, TEXT, 100, random.Random(n), sentences=3, longest=20)) for n in range(20)}
    assert len(orders) > 3
    with pytest.raises(SenriError, match="made of 4 sentences of at most 20 characters, but the text has 3"):
        noise_tokens(characters, TEXT, 100, random.Random(0), sentences=4, longest=20)


def test_code_is_of_the_standard_library() -> None:
    one, other = (said(code_tokens(characters, 20_000, random.Random(seed))) for seed in (0, 1))
    assert len(one) == 20_000 and "import " in one and "def " in one and one != other
    assert said(code_tokens(characters, 20_000, random.Random(0))) == one
    assert code_tokens(characters, 0, random.Random(0)) == []
    with pytest.raises(SenriError, match="ask for less"):
        code_tokens(characters, 10**9, random.Random(0))


def test_tables_of_contents_count_up() -> None:
    table = said(contents_tokens(characters, TEXT, 4000, random.Random(0), entries=12))
    assert len(table) == 4000 and table == said(contents_tokens(characters, TEXT, 4000, random.Random(0), entries=12))
    tables = [part for part in table.split("\n\n") if part[-1:].isdigit()][:-1]
    assert len(tables) > 3
    for part in tables:
        pages = [int(line.rstrip().rsplit(" ", 1)[-1].rsplit(".", 1)[-1]) for line in part.split("\n")]
        assert pages == sorted(pages) and len(pages) <= 12
    assert {"XII", "IX", "IV"} <= set(table.replace(".", " ").replace("-", " ").split())
    with pytest.raises(SenriError, match="hardly any"):
        contents_tokens(characters, "12 34 56", 100, random.Random(0), entries=3)


def test_the_reference_is_read_from_its_beginning() -> None:
    some = said(reference_tokens(characters, 3000))
    assert len(some) == 3000 and some[:500] == said(reference_tokens(characters, 500)) and "\n" in some
    with pytest.raises(SenriError, match="ask for less"):
        reference_tokens(characters, 10**9)
