import dataclasses
import random
import re
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from senri.data import Corpus, token_blocks
from senri.errors import SenriError
from senri.evaluation.needle import NeedleFormat
from senri.training import needle_blocks
from senri.training.needle_blocks import NeedleMixing, with_needles

PLAIN = NeedleFormat(
    "The secret key is: {value}.", "\nQuestion: What is the secret key mentioned above?\nAnswer:", questions=""
)
NAMED = NeedleFormat("The {kind} for {key} is: {value}.", "\nWhat is the {kind} for {key}?", "\nAnd for {keys}?")
MIXING = NeedleMixing(ratio=0.3, format=PLAIN, values=["codes"], needles=[1], question_context=24)
BLOCK = 300


@pytest.fixture
def blocks(tmp_path: Path, bytes_tokenizer) -> Dataset:
    words = random.Random(0).choices(["the", "owl", "went", "to", "sea", "in", "a", "boat."], k=4000)
    corpus = Corpus("owl", "owl", lambda: iter([("owl", iter((" ".join(words),)))]))
    return token_blocks(corpus, bytes_tokenizer, BLOCK, cache=tmp_path, tokens=BLOCK * 40, block_characters=1000)


def samples(rows: Dataset) -> list[dict]:
    return [row for row in rows if row["answer_start"] >= 0]


def test_a_sample_is_text_with_a_needle_then_context_question_answer_and_end(blocks: Dataset, bytes_tokenizer):
    mixed = with_needles(blocks, bytes_tokenizer, MIXING, seed=0)
    places = set()
    for before, row in zip(blocks, mixed, strict=True):
        if row["answer_start"] < 0:
            continue
        ids, start, answer = row["input_ids"], row["question_start"], row["answer_start"]
        body, tail = bytes_tokenizer.decode(ids[:start]), bytes_tokenizer.decode(ids[start:answer])
        value = re.fullmatch(r" (KEY-[A-Z]{3}\d{5})<eos>", bytes_tokenizer.decode(ids[answer:]))[1]
        needle = f" The secret key is: {value}."
        assert body.count(needle) == 1
        # Without the needle, text and context are the block's own beginning.
        text = bytes_tokenizer.decode(before["input_ids"])
        haystack = body.replace(needle, "") + tail[: MIXING.question_context]
        assert text.startswith(haystack) and len(haystack) == BLOCK - len(needle + PLAIN.question + value) - 2
        assert tail[MIXING.question_context :] == PLAIN.question
        place = body.index(needle)
        # At the end of a sentence, or where the text was over before one came.
        assert place == 0 or body[place - 1] == "." or body.endswith(needle)
        places.add(place)
    assert len(places) > 4


def test_all_rows_keep_their_length_and_the_plain_ones_their_text(blocks: Dataset, bytes_tokenizer):
    mixed = with_needles(blocks, bytes_tokenizer, MIXING, seed=0)
    assert mixed.column_names == ["input_ids", "document", "question_start", "answer_start"]
    assert {mixed.features[name].dtype for name in mixed.column_names[1:]} == {"int32"}
    assert mixed.features["input_ids"] == blocks.features["input_ids"]
    assert {len(ids) for ids in mixed["input_ids"]} == {BLOCK}
    for before, row in zip(blocks, mixed, strict=True):
        assert row["document"] == before["document"]
        assert (row["answer_start"] < 0) == (row["question_start"] < 0) == (row["input_ids"] == before["input_ids"])


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.1, 4), (0.3, 12), (1.0, 40)])
def test_the_share_is_exact(blocks: Dataset, bytes_tokenizer, ratio: float, count: int):
    mixed = with_needles(blocks, bytes_tokenizer, dataclasses.replace(MIXING, ratio=ratio), seed=0)
    assert len(mixed) == 40 and len(samples(mixed)) == count


def test_the_seed_decides_which_blocks_and_what_they_hide(blocks: Dataset, bytes_tokenizer):
    in_memory = Dataset.from_dict(blocks.to_dict(), features=blocks.features)
    first = with_needles(blocks, bytes_tokenizer, MIXING, seed=0)
    again = with_needles(in_memory, bytes_tokenizer, MIXING, seed=0)
    assert first.to_dict() == again.to_dict()
    other = with_needles(blocks, bytes_tokenizer, MIXING, seed=1)
    assert [one >= 0 for one in other["answer_start"]] != [one >= 0 for one in first["answer_start"]]
    whole = dataclasses.replace(MIXING, ratio=1.0)
    values = {
        bytes_tokenizer.decode(row["input_ids"][row["answer_start"] :])
        for seed in (0, 1)
        for row in with_needles(blocks, bytes_tokenizer, whole, seed=seed)
    }
    assert len(values) == 80


def test_question_and_answer_have_the_tokens_of_the_needle_test(blocks: Dataset, bytes_tokenizer):
    vocabulary = bytes_tokenizer.get_vocab()
    merging = Tokenizer(models.BPE(vocabulary | {":\u0120": len(vocabulary)}, [(":", "\u0120")]))
    merging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merging.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging, eos_token="<eos>")

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for row in samples(with_needles(blocks, tokenizer, MIXING, seed=0)):
        ids, answer = row["input_ids"], row["answer_start"]
        value = tokenizer.decode(ids[answer:-1]).strip()
        question, right = tokens(PLAIN.question), tokens(f" {value}")
        assert question + right != tokens(f"{PLAIN.question} {value}")
        assert ids[row["question_start"] + MIXING.question_context : -1] == question + right


def test_one_of_several_needles_is_asked_for_by_its_key(blocks: Dataset, bytes_tokenizer):
    mixing = NeedleMixing(ratio=1.0, format=NAMED, values=["numbers", "words"], needles=[1, 3], question_context=0)
    counts, kinds, asked = set(), set(), set()
    for row in with_needles(blocks, bytes_tokenizer, mixing, seed=0):
        ids, start, answer = row["input_ids"], row["question_start"], row["answer_start"]
        body = bytes_tokenizer.decode(ids[:start])
        hidden = re.findall(r" The (\w+) for ([\w-]+) is: ([\w-]+)\.", body)
        kind, key = re.fullmatch(
            r"\nWhat is the (\w+) for ([\w-]+)\?", bytes_tokenizer.decode(ids[start:answer])
        ).groups()
        value = bytes_tokenizer.decode(ids[answer:-1]).removeprefix(" ")
        assert (kind, key, value) in hidden
        assert len({name for _, name, _ in hidden}) == len(hidden)
        counts.add(len(hidden))
        kinds.add(kind)
        if len(hidden) == 3:
            asked.add([name for _, name, _ in hidden].index(key))
    assert (counts, kinds, asked) == ({1, 3}, {"number", "word"}, {0, 1, 2})


def test_samples_are_kept_beside_the_blocks(blocks: Dataset, bytes_tokenizer, monkeypatch: pytest.MonkeyPatch):
    folder = Path(blocks.cache_files[0]["filename"]).parent
    first = with_needles(blocks, bytes_tokenizer, MIXING, seed=0)
    assert Path(first.cache_files[0]["filename"]).parent == folder
    # Another seed and other settings have files of their own.
    with_needles(blocks, bytes_tokenizer, MIXING, seed=1)
    with_needles(blocks, bytes_tokenizer, dataclasses.replace(MIXING, question_context=3), seed=0)
    assert len([*folder.glob("needles-*.arrow")]) == 3

    def made_again(*_arguments):
        raise AssertionError("it was made again")

    monkeypatch.setattr(needle_blocks._Maker, "make", made_again)
    again = with_needles(blocks, bytes_tokenizer, MIXING, seed=0)
    assert again.to_dict() == first.to_dict() and again._fingerprint == first._fingerprint


def test_a_block_without_room_is_refused_and_nothing_is_kept(blocks: Dataset, bytes_tokenizer):
    with pytest.raises(SenriError, match="a block has 300 tokens.*question_context"):
        with_needles(blocks, bytes_tokenizer, dataclasses.replace(MIXING, question_context=200), seed=0)
    folder = Path(blocks.cache_files[0]["filename"]).parent
    assert [path.name for path in folder.iterdir()] == ["blocks.arrow"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"values": []}, "values is empty"),
        ({"needles": []}, "needles is empty"),
        ({"needles": [0, 1]}, "needles has 0"),
        ({"needles": [1, 2]}, "needles has 2.*no {key}"),
        ({"question_context": -1}, "question_context is -1"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict, words: str):
    with pytest.raises(SenriError, match=words):
        dataclasses.replace(MIXING, **changed)
