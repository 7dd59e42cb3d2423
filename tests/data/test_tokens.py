from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from senri.data import TokenStream, chunks, open_document
from senri.data.tokens import blocks
from senri.errors import SenriError


class WordTokenizer:
    """One token a blank-separated word; counts how many characters it was given at once."""

    def __init__(self):
        self.longest = 0

    def __call__(self, text, *, add_special_tokens, verbose):
        assert not add_special_tokens
        self.longest = max(self.longest, len(text))
        return {"input_ids": [int(word) for word in text.split()]}


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    path = tmp_path / "numbers.txt"
    path.write_text("\n".join(" ".join(str(10 * row + column) for column in range(10)) for row in range(50)))
    return TokenStream(open_document(path), WordTokenizer(), block_characters=100)


texts = st.text(alphabet=st.sampled_from("ab \n"), max_size=200)


@given(text=texts, size=st.integers(1, 30), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_blocks_join_to_the_text_and_do_not_depend_on_the_pieces(text: str, size: int, cuts: list[int]):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    whole = list(blocks([text], size))
    assert list(blocks(pieces, size)) == whole
    assert "".join(whole) == text
    assert all(0 < len(block) <= size for block in whole)


@given(text=texts, size=st.integers(1, 30))
def test_a_block_ends_inside_a_line_only_when_the_line_is_longer_than_a_block(text: str, size: int):
    for block in list(blocks([text], size))[:-1]:
        assert block.endswith("\n") or "\n" not in block


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_tokens_are_the_same_whatever_the_chunk_size(stream: TokenStream, size: int):
    got = list(chunks(stream, size))
    assert all(chunk.shape == (1, size) for chunk in got[:-1])
    assert got[-1].shape[1] <= size
    assert got[0].dtype == torch.int64
    assert torch.cat(got, dim=1)[0].tolist() == list(range(500))


def test_skip_goes_on_where_reading_stopped(stream: TokenStream):
    assert list(stream.skip(123)) == list(range(123, 500))
    assert list(stream.skip(500)) == []
    assert list(stream.skip(10_000)) == []


def test_estimate_is_near_the_truth_and_looks_at_one_block_only(stream: TokenStream):
    assert 400 < stream.estimate() < 800
    assert stream.tokenizer.longest <= 100


def test_text_is_tokenised_in_blocks(stream: TokenStream):
    first = next(chunks(stream, 5))
    assert first[0].tolist() == [0, 1, 2, 3, 4]
    assert 0 < stream.tokenizer.longest <= 100


def test_sizes_below_one_are_refused(stream: TokenStream):
    with pytest.raises(SenriError, match="chunk size is 0"):
        next(chunks(stream, 0))
    with pytest.raises(SenriError, match="block_characters is -1"):
        TokenStream(stream.document, stream.tokenizer, -1)
    with pytest.raises(SenriError, match="skip -2"):
        stream.skip(-2)
