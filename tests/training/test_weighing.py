"""How much each token of an answer counts."""

import torch

from senri.training.recall.weighing import answer_shares, answer_weights, begins_answer


def test_tokens_count_one_by_one_and_first_tokens_more() -> None:
    rows = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3])
    assert begins_answer(rows).tolist() == [True, False, False, True, True, False, False, False]
    weights = answer_weights(rows, 3.0)
    assert weights.tolist() == [3.0, 1.0, 1.0, 3.0, 3.0, 1.0, 1.0, 1.0]


def test_every_answer_has_one_in_all() -> None:
    rows = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3])
    shares = answer_shares(rows, answer_weights(rows, 3.0))
    wanted = torch.tensor([0.6, 0.2, 0.2, 1.0, 0.5, 1 / 6, 1 / 6, 1 / 6])
    torch.testing.assert_close(shares, wanted)
    nothing = torch.tensor([], dtype=torch.int64)
    assert answer_shares(nothing, answer_weights(nothing, 3.0)).tolist() == []
