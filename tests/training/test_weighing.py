"""How much each token of an answer counts."""

import torch

from senri.training.recall.weighing import answer_shares, begins_answer


def test_first_tokens_have_their_share_and_the_others_the_rest() -> None:
    rows = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3])
    is_text = torch.tensor([False] * 4 + [True] * 4)
    shares = answer_shares(rows, 0.6, is_text)
    assert torch.allclose(shares, torch.tensor([0.6, 0.2, 0.2, 1.0, 0.25, 0.25, 0.25, 0.25]))
    assert begins_answer(rows).tolist() == [True, False, False, True, True, False, False, False]
    assert torch.allclose(answer_shares(rows[:4], 0.6), shares[:4])
