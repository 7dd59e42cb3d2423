"""Code of Python's own library, and a few sentences that are said over and over."""

import random
from typing import Any

import pytest

from senri.data.other_texts import code_tokens, noise_tokens
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
