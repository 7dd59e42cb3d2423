"""Reads compared with codes in every turn: against each turn by itself, in values, turns and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from senri.memory.turns import by_sign, in_their_best_turns, turns


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(reads: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    each = torch.stack([(reads * signs) @ codes.T for signs in turns(count, reads.shape[-1]).double()])
    return each.amax(0), each.amax(-1).argmax(0)


@given(
    count=st.sampled_from([1, 2, 4, 16]),
    half=st.integers(1, 40),
    reads=st.integers(1, 40),
    codes=st.integers(1, 30),
    seed=st.integers(0, 2**20),
)
def test_the_best_turn_is_that_of_a_loop(count: int, half: int, reads: int, codes: int, seed: int) -> None:
    """For any width, divisible by the turns or not."""
    some, others = drawn(reads, 2 * half, seed=seed), drawn(codes, 2 * half, seed=seed + 1)
    likeness, turn = in_their_best_turns(some, by_sign(others, count))
    wanted, wanted_turn = naive(some, others, count)
    torch.testing.assert_close(likeness, wanted)
    if half >= count:  # with fewer entries some turns are the same
        assert torch.equal(turn, wanted_turn)


@pytest.mark.parametrize("reads", [1, 20])
def test_neither_blocks_of_reads_nor_of_codes_show(reads: int) -> None:
    codes = (1 << 15) // min(reads, 16) + 3
    some, others = drawn(reads, 12, seed=0), drawn(codes, 12, seed=1)
    likeness, turn = in_their_best_turns(some, by_sign(others, 4))
    wanted, wanted_turn = naive(some, others, 4)
    torch.testing.assert_close(likeness, wanted)
    assert torch.equal(turn, wanted_turn)


def test_gradients_are_those_of_a_loop() -> None:
    reads, codes, weights = drawn(20, 16, seed=0), drawn(30, 16, seed=1), drawn(20, 30, seed=2)
    found = []
    for compare in (lambda x, y: in_their_best_turns(x, by_sign(y, 4))[0], lambda x, y: naive(x, y, 4)[0]):
        x, y = reads.clone().requires_grad_(), codes.clone().requires_grad_()
        (weights * compare(x, y)).sum().backward()
        found.append((x.grad, y.grad))
    torch.testing.assert_close(found[0], found[1])
