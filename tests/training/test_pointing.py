"""Pointing: what a longer text would do to a read, told from a shorter one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from senri.ops import naive
from senri.training.recall.pointing import NOWHERE, Pointer, clearness, interference


def state_behind(keys: Tensor, values: Tensor, strengths: Tensor) -> Tensor:
    """Return what a delta rule keeps of a text, `[key_dim, width]`."""
    text = (keys[None, None], keys[None, None], values[None, None])
    _, state = naive.delta_rule(*text, beta=strengths[None, None])
    return state[0, 0]


@pytest.mark.parametrize("longer", [4, 8])
def test_a_longer_text_makes_a_read_as_much_fainter_as_a_shorter_one_says(longer: int) -> None:
    torch.manual_seed(longer)
    short, fact = 400, 20
    keys = F.normalize(torch.randn(short * longer, 512), dim=-1)
    values = torch.randint(0, 2, (short * longer, 96)).float() * 2 - 1
    strengths = torch.rand(short * longer) * 0.02  # little of a fact is erased again
    strengths[fact] = 0.04
    queries = F.normalize(keys[fact] + 0.05 * torch.randn(40, 512), dim=-1)

    def reads(length: int) -> Tensor:
        return queries @ state_behind(keys[:length], values[:length], strengths[:length])

    now, later = (F.cosine_similarity(reads(length), values[fact], dim=-1) for length in (short, short * longer))
    passing = torch.arange(short) != fact
    noise = (longer - 1) * interference((queries @ keys[:short].T)[:, None], strengths[None, :short], passing)
    told = now * clearness(reads(short).square().mean(-1), noise)
    assert later.mean() < 0.9 * now.mean()  # or there would be nothing to tell
    assert abs(told.mean() - later.mean()) < 0.12 * later.mean(), (now.mean(), told.mean(), later.mean())


def test_only_what_is_passed_by_is_in_the_way() -> None:
    cosines = torch.tensor([[[0.5, 0.2, 0.1], [0.0, 0.4, 1.0]]])  # one token, two heads
    strengths = torch.tensor([[1.0, 0.5, 0.5], [1.0, 1.0, 0.1]])
    found = interference(cosines, strengths, torch.tensor([False, True, True]))
    torch.testing.assert_close(found, torch.tensor([(0.1**2 + 0.05**2 + 0.4**2 + 0.1**2) / 2]))
    torch.testing.assert_close(clearness(torch.tensor([0.3, 0.0]), torch.tensor([0.9, 0.0])), torch.tensor([0.5, 0.0]))


def test_a_pointer_gives_right_candidates_their_shares_together() -> None:
    cosines = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.5, 0.1]])
    is_right = torch.tensor([[True, False, True], [False, False, False]])
    likely = torch.tensor([[-3.0, 0.0, -0.5], [0.0, 0.0, 0.0]])
    pointer = Pointer(cosines, is_right, likely)
    shares = (4.0 * 0.5 * cosines[0] + likely[0]).softmax(0)
    said = pointer.log_probabilities(4.0, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(said[0].exp(), shares[0] + shares[2])
    assert said[1] == NOWHERE
    assert pointer.is_correct(4.0).tolist() == [False, False] and pointer.is_correct(400.0).tolist() == [True, False]
    assert pointer.right_cosine.tolist() == pytest.approx([0.9, -1.0])
