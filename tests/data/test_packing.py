import pytest
from hypothesis import given
from hypothesis import strategies as st

from senri.data.packing import EOS, pack, pack_apart, separator_tokens
from senri.errors import SenriError

SENTENCES = [f"Number {index} is {index * 7}." for index in range(20)]


class Bytes:
    """A tokenizer whose tokens are bytes, and which joins a full stop and a line break when they meet in a text."""

    eos_token_id = 300

    def __call__(self, text, *, add_special_tokens, verbose):
        return {"input_ids": list(text.encode().replace(b".\n", b"\xff"))}


def test_every_sentence_keeps_its_own_tokens_and_only_the_rest_is_dropped():
    blocks = pack(SENTENCES, Bytes(), 16, seed=0)
    ids = blocks.flatten().tolist()
    assert blocks.shape[1] == 16
    assert 0xFF not in ids
    total = sum(len(sentence) + 1 for sentence in SENTENCES)
    assert len(ids) == total - total % 16
    found = bytes(ids).decode().split("\n")
    assert set(found[:-1]) < set(SENTENCES)
    assert len({*found[:-1]}) == len(found) - 1
    assert found[:-1] != SENTENCES[: len(found) - 1]


def test_a_seed_gives_the_same_blocks_and_another_one_others():
    assert pack(SENTENCES, Bytes(), 16, seed=3).equal(pack(SENTENCES, Bytes(), 16, seed=3))
    assert not pack(SENTENCES, Bytes(), 16, seed=3).equal(pack(SENTENCES, Bytes(), 16, seed=4))


def test_the_end_of_text_token_may_part_sentences():
    ids = pack(["a", "b", "c"], Bytes(), 6, seed=0, separator=EOS).flatten().tolist()
    assert ids[1::2] == [300] * 3
    assert sorted(ids[::2]) == [97, 98, 99]


def test_bad_input_is_said():
    with pytest.raises(SenriError, match="block_tokens is 0"):
        pack(SENTENCES, Bytes(), 0, seed=0)
    with pytest.raises(SenriError, match="only 4 tokens"):
        pack(["abc"], Bytes(), 5, seed=0)
    with pytest.raises(SenriError, match="must have a token"):
        separator_tokens("", Bytes())
    with pytest.raises(SenriError, match="no end-of-text token"):
        separator_tokens(EOS, lambda *_, **__: {"input_ids": []})
    with pytest.raises(SenriError, match="7 tokens with its separator"):
        pack_apart([3, 7], [{"a"}, {"b"}], 6)


@given(st.lists(st.tuples(st.integers(1, 9), st.sets(st.sampled_from("abcdef"), min_size=1, max_size=2)), max_size=40))
def test_blocks_hold_every_sentence_once_and_no_name_twice(sentences):
    sizes, names = [size for size, _ in sentences], [own for _, own in sentences]
    blocks = pack_apart(sizes, names, 12)
    assert sorted(index for block in blocks for index in block) == list(range(len(sentences)))
    for block in blocks:
        assert sum(sizes[index] for index in block) <= 12
        held = [name for index in block for name in names[index]]
        assert len(held) == len({*held})
    # Nothing is put off that would have fitted.
    for later, block in enumerate(blocks):
        for earlier in blocks[:later]:
            before = [index for index in earlier if index < block[0]]
            held = {name for index in before for name in names[index]}
            fits = sum(sizes[index] for index in before) + sizes[block[0]] <= 12
            assert not (fits and not held & names[block[0]])
