"""MemoryState: save, load, merge, diff and inspect the memory of a whole model."""

import dataclasses
import math

import pytest
import torch

from senri.errors import SenriError
from senri.memory import Header, MemoryBranch, MemoryConfig, MemoryState, TensorMemory, fingerprint
from senri.memory.state import split_tensors

HEADER = Header("memory", "some/base", "f" * 64, "float32", 100, "linear", "tensor")


def read(memory, k, v):
    state = memory.write(k, v, memory.init_state(k.shape[0]))
    return MemoryState({4: state}, dataclasses.replace(HEADER, tokens_read=k.shape[2]))


@pytest.fixture
def memory():
    return TensorMemory(hidden_size=16, num_heads=2, segment_length=4)


def random_kv(seed, seq=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, seq, 8, generator=generator), torch.randn(1, 2, seq, 8, generator=generator)


def test_save_and_load(tmp_path, memory):
    state = read(memory, *random_kv(0))
    state.save(tmp_path / "a")
    loaded = MemoryState.load(tmp_path / "a")
    assert loaded.header == state.header
    assert loaded.nbytes == state.nbytes == 2 * 2 * (64 + 8) * 4 + 8
    for name, tensor in state.layers[4].items():
        assert torch.equal(loaded.layers[4][name], tensor)


def test_a_merged_memory_answers_as_one_that_read_both(memory):
    (k1, v1), (k2, v2) = random_kv(1), random_kv(2)
    merged = MemoryState.merge([read(memory, k1, v1), read(memory, k2, v2)])
    both = read(memory, torch.cat([k1, k2], 2), torch.cat([v1, v2], 2))
    q = random_kv(3)[0]
    torch.testing.assert_close(memory.read(q, merged.layers[4]), memory.read(q, both.layers[4]))
    assert merged.header.tokens_read == 16
    assert merged.layers[4]["count"].tolist() == [16]


def test_merging_keeps_unfinished_segments(memory):
    (k1, v1), (k2, v2) = random_kv(1, 6), random_kv(2, 5)
    merged = MemoryState.merge([read(memory, k1, v1), read(memory, k2, v2)]).layers[4]
    whole = memory.write(torch.cat([k1, k2], 2), torch.cat([v1, v2], 2), memory.init_state(1))
    torch.testing.assert_close(merged["M"] + merged["pending_M"], whole["M"] + whole["pending_M"])


def test_merging_starts_convolutions_afresh():
    config = MemoryConfig(projections="own", token_shift=True, short_convolution=3)
    branch = MemoryBranch(config, 16, 2, 2, 8, 8)
    with torch.no_grad():
        state = branch.write(torch.randn(1, 5, 16), branch.init_state(1))
    merged = MemoryState.merge([MemoryState({0: state}, HEADER), MemoryState({0: state}, HEADER)]).layers[0]
    assert not merged["begun"].any()
    assert not merged["conv_k"].any()
    assert merged.keys() == state.keys()


def test_what_cannot_be_merged(memory):
    state = read(memory, *random_kv(0))
    delta = MemoryState(state.layers, dataclasses.replace(HEADER, rule="delta"))
    stranger = MemoryState(state.layers, dataclasses.replace(HEADER, fingerprint="e" * 64, base="other/base"))
    with pytest.raises(SenriError, match="'delta' cannot be merged"):
        MemoryState.merge([delta, delta])
    with pytest.raises(SenriError, match=r"different models.*some/base.*other/base"):
        MemoryState.merge([state, stranger])
    with pytest.raises(SenriError, match="different models"):
        state.diff(stranger)
    with pytest.raises(SenriError, match="nothing to merge"):
        MemoryState.merge([])
    with pytest.raises(SenriError, match="different tensors or shapes"):
        MemoryState.merge([state, MemoryState({4: memory.init_state(2)}, HEADER)])


def test_diff(memory):
    first = read(memory, *random_kv(0))
    second = MemoryState({4: {**first.layers[4], "M": 3.0 * first.layers[4]["M"]}}, HEADER)
    for row in first.diff(second):
        assert row.other_norm == pytest.approx(3 * row.norm, rel=1e-6)
        assert row.difference == pytest.approx(2 * row.norm, rel=1e-6)
        assert row.cosine == pytest.approx(1.0)
    rows = MemoryState.diff(first, MemoryState({}, HEADER))
    assert [(row.layer, row.row, row.head) for row in rows] == [(4, 0, 0), (4, 0, 1)]
    assert all(row.difference == pytest.approx(row.norm) and row.other_norm == 0 for row in rows)


def test_inspect_knows_norms_and_ranks():
    matrix = torch.zeros(1, 2, 4, 4)
    matrix[0, 0] = torch.diag(torch.tensor([3.0, 3.0, 3.0, 0.0]))
    state = {"M": matrix, "z": torch.ones(1, 2, 4), "count": torch.tensor([9])}
    full, empty = MemoryState({7: state}, HEADER).inspect(singular_values=2)
    assert (full.layer, full.head, full.tokens) == (7, 0, 9)
    assert full.norm == pytest.approx(3 * math.sqrt(3))
    assert full.effective_rank == pytest.approx(3.0)
    assert full.singular_values == pytest.approx((3.0, 3.0))
    assert full.z_norm == pytest.approx(2.0)
    assert empty.effective_rank == empty.norm == 0.0
    assert full.written is None
    rows = MemoryState({7: {**state, "written": torch.tensor([[12.5, 0.25]])}}, HEADER).inspect()
    assert [row.written for row in rows] == [12.5, 0.25]


def test_names_in_files():
    tensors = {"layers.12.memory.pending_M": torch.ones(1), "layers.3.window.keys": torch.zeros(1)}
    memories, windows = split_tensors(tensors)
    assert memories == {12: {"pending_M": tensors["layers.12.memory.pending_M"]}}
    assert windows == {3: {"keys": tensors["layers.3.window.keys"]}}
    with pytest.raises(SenriError, match=r"'model\.weight'"):
        split_tensors({"model.weight": torch.ones(1)})


def test_fingerprint_depends_on_layout_names_and_weights():
    layout, weights = {"b": 1, "a": [2]}, {"w": torch.arange(3.0), "u": torch.ones(2)}
    same = fingerprint({"a": [2], "b": 1}, {"u": torch.ones(2), "w": torch.arange(3.0)})
    assert fingerprint(layout, weights) == same
    assert len(same) == 64
    changed = [
        fingerprint({"b": 1, "a": [3]}, weights),
        fingerprint(layout, {**weights, "u": torch.tensor([1.0, 1.0000001])}),
        fingerprint(layout, {"w2": weights["w"], "u": weights["u"]}),
        fingerprint(layout, {"w": weights["w"].bfloat16(), "u": weights["u"]}),
    ]
    assert same not in changed
    assert len(set(changed)) == 4
