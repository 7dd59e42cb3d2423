"""Reads compared with codes in every turn: against each turn by itself, in values, turns and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from senri.memory.turns import by_sign, in_their_best_turns, turns


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_each_turn(reads: Tensor, codes: Tensor, count: int) -> Tensor:
    return torch.stack([(reads * signs) @ codes.T for signs in turns(count, reads.shape[-1]).double()])


def naive(reads: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    each = in_each_turn(reads, codes, count)
    return each.amax(0), each.amax(-1).argmax(0)


def naive_behind(reads: Tensor, codes: Tensor, count: int, shown: Tensor) -> Tensor:
    each = in_each_turn(reads, codes, count)
    behind = torch.zeros(shown.shape, dtype=reads.dtype)
    for read, tokens in enumerate(shown.tolist()):
        others = [code for code in range(len(codes)) if code not in tokens]
        for number, token in enumerate(tokens):
            turn = int(each[:, read, token].argmax())
            behind[read, number] = each[(turn + 1) % count, read, others].max()
    return behind


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
    likeness, turn, _ = in_their_best_turns(some, by_sign(others, count))
    wanted, wanted_turn = naive(some, others, count)
    torch.testing.assert_close(likeness, wanted)
    if half >= count:  # with fewer entries some turns are the same
        assert torch.equal(turn, wanted_turn)


@given(
    count=st.sampled_from([2, 4, 16]),
    reads=st.integers(1, 40),
    tokens=st.integers(0, 9),
    seed=st.integers(0, 2**20),
)
def test_what_stands_behind_a_token_is_that_of_a_loop(count: int, reads: int, tokens: int, seed: int) -> None:
    """The token's own turn decides where that is, and no token that is shown counts there, also where it is twice."""
    some, codes = drawn(reads, 64, seed=seed), drawn(12, 64, seed=seed + 1)
    shown = torch.randint(12, (reads, tokens), generator=torch.Generator().manual_seed(seed))
    none = torch.full((reads, 1), -1)
    likeness, turn, behind = in_their_best_turns(some, by_sign(codes, count), torch.cat([shown, none], dim=1))
    assert behind is not None
    torch.testing.assert_close(behind[:, :-1], naive_behind(some, codes, count, shown))
    alone = in_their_best_turns(some, by_sign(codes, count))
    assert torch.equal(likeness, alone[0]) and torch.equal(turn, alone[1]) and alone[2] is None


def test_a_code_behind_another_is_found_there() -> None:
    """A read of three tokens in a row: what stands behind the first two are the other two, whole."""
    codes = torch.nn.functional.normalize(drawn(40, 512, seed=3), dim=-1)
    signs = turns(16, 512).double()
    row = sum(codes[token] * signs[(15 + place) % 16] for place, token in enumerate((7, 30, 2)))
    assert isinstance(row, Tensor)
    _, _, behind = in_their_best_turns(row[None], by_sign(codes, 16), torch.tensor([[7, 5, -1]]))
    assert behind is not None
    assert behind[0, 0] == pytest.approx(1.0, abs=0.2)
    assert behind[0, 1] < 0.3


@pytest.mark.parametrize("reads", [1, 20])
def test_neither_blocks_of_reads_nor_of_codes_show(reads: int) -> None:
    codes = (1 << 15) // min(reads, 16) + 3
    some, others = drawn(reads, 12, seed=0), drawn(codes, 12, seed=1)
    likeness, turn, _ = in_their_best_turns(some, by_sign(others, 4))
    wanted, wanted_turn = naive(some, others, 4)
    torch.testing.assert_close(likeness, wanted)
    assert torch.equal(turn, wanted_turn)
    shown = torch.tensor([[0, codes - 1]]).expand(reads, -1)
    behind = in_their_best_turns(some, by_sign(others, 4), shown)[2]
    each = in_each_turn(some, others, 4)
    after = (each[:, :, shown[0]].argmax(0) + 1) % 4
    torch.testing.assert_close(behind, each[:, :, 1:-1].amax(-1).T.gather(1, after))


def test_gradients_are_those_of_a_loop() -> None:
    reads, codes, weights = drawn(20, 16, seed=0), drawn(30, 16, seed=1), drawn(20, 30, seed=2)
    found = []
    for compare in (lambda x, y: in_their_best_turns(x, by_sign(y, 4))[0], lambda x, y: naive(x, y, 4)[0]):
        x, y = reads.clone().requires_grad_(), codes.clone().requires_grad_()
        (weights * compare(x, y)).sum().backward()
        found.append((x.grad, y.grad))
    torch.testing.assert_close(found[0], found[1])
