"""States that give room only to written parts: nothing is lost, nothing is kept that nobody wrote."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from senri.memory import state_bytes
from senri.memory.sparse import BY_PART, from_dense, is_sparse, to_dense

HEADS, PARTS, FEATURE, VALUE = 2, 5, 3, 4
SHAPES = {"M": (FEATURE, VALUE), "z": (FEATURE,), "pending_M": (FEATURE, VALUE), "pending_z": (FEATURE,)}


def dense_state(rows, patterns, shared=False):
    """A state whose tensor `name` holds something exactly where `patterns[name]` (rows x heads x parts) says so."""
    state = {"count": torch.arange(rows), "pending_decay": torch.rand(rows, HEADS)}
    for name, pattern in patterns.items():
        kept = torch.tensor(pattern).view(-1, HEADS, PARTS)
        kept = kept[:1] if shared and not name.startswith("pending") else kept
        numbers = torch.rand(*kept.shape, *SHAPES[name]) + 0.1
        numbers[..., 0] *= torch.arange(1, FEATURE + 1).view(-1, 1)[:, 0] % 2 if name in ("M", "pending_M") else 1
        state[name] = numbers * kept.view(*kept.shape, *[1] * len(SHAPES[name]))
    return state


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


@st.composite
def states(draw):
    rows = draw(st.integers(1, 4))
    flags = st.lists(st.booleans(), min_size=rows * HEADS * PARTS, max_size=rows * HEADS * PARTS)
    names = draw(st.sampled_from([BY_PART, ("M",), ("M", "z"), ("M", "pending_M")]))
    return dense_state(rows, {name: draw(flags) for name in names}, shared=draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(state=states())
def test_dense_and_sparse_are_the_same_state(state):
    sparse = from_dense(state)
    assert is_sparse(sparse) and not is_sparse(state)
    assert_same(to_dense(sparse), state)
    assert_same(from_dense(to_dense(sparse)), sparse)
    assert to_dense(state) is state


@settings(max_examples=150, deadline=None)
@given(state=states())
def test_the_room_is_that_of_the_row_with_the_most_written_parts(state):
    sparse = from_dense(state)
    by_part = {name: tensor for name, tensor in state.items() if name in BY_PART}
    rows = min(tensor.shape[0] for tensor in by_part.values())
    written = torch.zeros(rows, HEADS, PARTS, dtype=torch.bool)
    for tensor in by_part.values():
        for row, head, part in tensor.flatten(3).any(dim=-1).nonzero().tolist():
            written[row if rows > 1 else 0, head, part] = True
    assert torch.equal(sparse["touched"], written)
    stored = int(written.flatten(1).sum(dim=1).max())
    for name, tensor in by_part.items():
        assert sparse[name].shape == (tensor.shape[0], stored, *SHAPES[name])
    assert state_bytes(sparse) <= state_bytes(state) + sparse["touched"].nbytes


@pytest.mark.parametrize("kept", (False, True))
def test_nothing_and_everything_written_come_back(kept):
    state = dense_state(2, {name: [kept] * (2 * HEADS * PARTS) for name in BY_PART})
    sparse = from_dense(state)
    assert sparse["M"].shape == (2, HEADS * PARTS if kept else 0, FEATURE, VALUE)
    assert_same(to_dense(sparse), state)


def test_rows_that_wrote_different_numbers_of_parts_are_filled_up_with_zeros():
    pattern = torch.zeros(3, HEADS, PARTS, dtype=torch.bool)
    pattern[0, 0, 1] = pattern[2, 0, 4] = pattern[2, 1, 0] = pattern[2, 1, 3] = True
    state = dense_state(3, {"M": pattern.flatten().tolist()})
    sparse = from_dense(state)
    assert sparse["M"].shape[:2] == (3, 3)
    assert torch.equal(sparse["M"][0, 0], state["M"][0, 0, 1])
    assert not sparse["M"][0, 1:].any() and not sparse["M"][1].any()
    assert torch.equal(sparse["M"][2], torch.stack([state["M"][2, 0, 4], state["M"][2, 1, 0], state["M"][2, 1, 3]]))


def test_a_part_that_one_row_is_about_to_write_has_room_in_the_state_all_rows_share():
    waiting = torch.zeros(3, HEADS, PARTS, dtype=torch.bool)
    waiting[2, 1, 4] = True
    written = torch.zeros(1, HEADS, PARTS, dtype=torch.bool)
    written[0, 0, 0] = True
    state = dense_state(3, {"M": written.expand(3, -1, -1).flatten().tolist(), "pending_M": waiting.flatten().tolist()},
                        shared=True)  # fmt: skip
    sparse = from_dense(state)
    assert sparse["touched"].nonzero().tolist() == [[0, 0, 0], [0, 1, 4]]
    assert (sparse["M"].shape[:2], sparse["pending_M"].shape[:2]) == ((1, 2), (3, 2))
    assert_same(to_dense(sparse), state)


def test_gradients_pass_through_both_ways():
    pattern = torch.rand(2, HEADS, PARTS, generator=torch.Generator().manual_seed(0)) > 0.5
    state = dense_state(2, {"M": pattern.flatten().tolist()})
    leaf = state["M"].requires_grad_()
    weight = torch.randn_like(leaf)
    (to_dense(from_dense(state))["M"] * weight).sum().backward()
    assert torch.equal(leaf.grad, weight * pattern[..., None, None])
