from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from senri.data import Corpus, token_blocks
from senri.data import blocks as blocks_module
from senri.data.blocks import end_of_text, tokenizer_fingerprint
from senri.errors import SenriError


class Letters:
    """A token for each character; counts the calls."""

    eos_token_id: int | None = 0
    bos_token_id: int | None = None

    def __init__(self):
        self.calls = 0

    def get_vocab(self):
        return {"letters": 1}

    def __call__(self, texts, *, add_special_tokens, return_attention_mask, verbose):
        assert not add_special_tokens
        self.calls += 1
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def corpus_of(texts: list[str], fingerprint: str = "a") -> Corpus:
    return Corpus("books", fingerprint, lambda: ((str(number), iter((text,))) for number, text in enumerate(texts)))


def packed(cache: Path, texts: list[str], block_tokens: int, tokenizer=None, tokens=None, **options):
    options = {"block_characters": 7} | options
    fingerprint = options.pop("fingerprint", "a")
    return token_blocks(
        corpus_of(texts, fingerprint), tokenizer or Letters(), block_tokens, cache=cache, tokens=tokens, **options
    )


def reference(texts: list[str], block_tokens: int, tokens: int | None) -> tuple[list[list[int]], list[int]]:
    """Return blocks and documents the slow way: everything in a row, then cut."""
    row: list[tuple[int, int]] = []
    for number, text in enumerate(texts):
        if row and text:
            row.append((0, row[-1][1]))
        row += [(ord(letter), number) for letter in text]
    blocks = [row[start : start + block_tokens] for start in range(0, len(row[:tokens]), block_tokens)]
    blocks = [block for block in blocks if len(block) == block_tokens]
    if tokens is not None:
        blocks = blocks[: tokens // block_tokens]
    return [[token for token, _ in block] for block in blocks], [block[0][1] for block in blocks]


@given(
    texts=st.lists(st.text("ab \n", max_size=40), min_size=1, max_size=5),
    block_tokens=st.integers(1, 9),
    tokens=st.none() | st.integers(9, 60),
    batch=st.integers(1, 60),
)
@settings(deadline=None, max_examples=40)
def test_blocks_are_the_documents_in_a_row_cut_into_equal_parts(
    tmp_path_factory, texts: list[str], block_tokens: int, tokens: int | None, batch: int
):
    rows, documents = reference(texts, block_tokens, tokens)
    if not rows:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "_BATCH_CHARACTERS", batch)
        blocks = packed(tmp_path_factory.mktemp("cache"), texts, block_tokens, tokens=tokens)
    assert blocks["input_ids"][:] == rows
    assert blocks["document"][:] == documents


def test_columns_have_a_fixed_size_and_lie_in_a_mapped_file(tmp_path: Path):
    blocks = packed(tmp_path, ["abcdefghij"], 4)
    assert blocks.column_names == ["input_ids", "document"]
    assert blocks.features["input_ids"].length == 4
    assert blocks.features["input_ids"].feature.dtype == blocks.features["document"].dtype == "int32"
    assert Path(blocks.cache_files[0]["filename"]).is_relative_to(tmp_path)


def test_second_call_tokenises_nothing(tmp_path: Path):
    tokenizer = Letters()
    first = packed(tmp_path, ["abcdefghij"], 4, tokenizer)
    assert tokenizer.calls == 1
    again = packed(tmp_path, ["abcdefghij"], 4, tokenizer)
    assert tokenizer.calls == 1
    assert again["input_ids"][:] == first["input_ids"][:]
    assert again._fingerprint == first._fingerprint


@pytest.mark.parametrize(
    "changed", [{"fingerprint": "b"}, {"tokens": 8}, {"block_characters": 5}, {"block_tokens": 5}], ids=str
)
def test_other_text_size_or_limit_has_other_blocks(tmp_path: Path, changed: dict):
    tokenizer = Letters()
    packed(tmp_path, ["abcdefghij"], 4, tokenizer)
    packed(tmp_path, ["abcdefghij"], **{"block_tokens": 4, "tokenizer": tokenizer} | changed)
    assert tokenizer.calls == 2


def test_reading_stops_where_the_limit_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks_module, "_BATCH_CHARACTERS", 10)
    tokenizer, told = Letters(), []
    blocks = packed(tmp_path, ["x" * 1000], 5, tokenizer, tokens=24, block_characters=10, on_progress=told.append)
    assert len(blocks) == 4
    assert tokenizer.calls == 2 and told == [10, 10]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path):
    def broken() -> Iterator[tuple[str, Iterator[str]]]:
        yield "first", iter(("x" * 50,))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_blocks(Corpus("books", "a", broken), Letters(), 4, cache=tmp_path, tokens=None, block_characters=10)
    assert list(tmp_path.iterdir()) == []
    assert len(packed(tmp_path, ["x" * 50], 4, block_characters=10)) == 12


def test_of_two_processes_the_later_takes_the_file_of_the_first(tmp_path: Path):
    winner = []

    def overtaken() -> Iterator[tuple[str, Iterator[str]]]:
        winner.append(packed(tmp_path, ["abcdefghij"], 4))
        yield "0", iter(("abcdefghij",))

    corpus = Corpus("books", "a", overtaken)
    late = token_blocks(corpus, Letters(), 4, cache=tmp_path, tokens=None, block_characters=7)
    assert late.cache_files == winner[0].cache_files
    assert late["input_ids"][:] == winner[0]["input_ids"][:]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_make_a_block_is_refused(tmp_path: Path):
    with pytest.raises(SenriError, match="books has 10 tokens.*block_tokens 11"):
        packed(tmp_path, ["abcdefghij"], 11)
    with pytest.raises(SenriError, match="tokens is 3.*block_tokens 4"):
        packed(tmp_path, ["abcdefghij"], 4, tokens=3)
    for name in ("block_tokens", "block_characters"):
        with pytest.raises(SenriError, match=f"{name} is 0"):
            packed(tmp_path, ["abcdefghij"], **{"block_tokens": 4} | {name: 0})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SenriError, match="cannot be written"):
        packed(tmp_path / "file", ["abcdefghij"], 4)


def test_documents_are_parted_by_the_beginning_of_a_text_where_there_is_no_end(tmp_path: Path):
    tokenizer = Letters()
    tokenizer.eos_token_id, tokenizer.bos_token_id = None, 7
    assert packed(tmp_path, ["a", "b"], 3, tokenizer)["input_ids"][0] == [97, 7, 98]
    tokenizer.bos_token_id = None
    with pytest.raises(SenriError, match="eos_token"):
        end_of_text(tokenizer)


def fast_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")


def test_fingerprint_of_a_tokenizer_follows_its_vocabulary_alone():
    words = ["<unk>", "<eos>", "one", "two"]
    tokenizer = fast_tokenizer(words)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["one two", "one"], truncation=True, max_length=1, padding="max_length")
    assert tokenizer_fingerprint(tokenizer) == before == tokenizer_fingerprint(fast_tokenizer(words))
    assert tokenizer_fingerprint(fast_tokenizer([*words, "three"])) != before
    assert tokenizer_fingerprint(fast_tokenizer([*words[:2], "two", "one"])) != before


def test_a_tokenizer_of_transformers_makes_them(tmp_path: Path):
    tokenizer = fast_tokenizer(["<unk>", "<eos>", "one", "two"])
    blocks = packed(tmp_path, ["one two two", "two one"], 3, tokenizer)
    assert blocks["input_ids"][:] == [[2, 3, 3], [1, 3, 2]]
    assert blocks["document"][:] == [0, 0]
