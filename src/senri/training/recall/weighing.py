"""How much each token of an answer counts."""

import torch
from torch import Tensor


def begins_answer(rows: Tensor) -> Tensor:
    """Return which tokens are the first of their rows, `[tokens]`; rows as in `answer_weights`."""
    return rows != torch.cat([rows.new_tensor([-1]), rows[:-1]])


def answer_weights(rows: Tensor, first_weight: float) -> Tensor:
    """Return how much each token of some answers counts, `[tokens]`: 1, and more for the first one of an answer.

    An answer is right when all its tokens are, so that a long one has more to learn from. But one that has begun goes
    on much more easily than it begins: there, the tokens before are those of the text.

    Args:
        rows: which answer each token is of, `[tokens]`, ascending; an answer's tokens stand in order.
        first_weight: of the first token.
    """
    return torch.where(begins_answer(rows), first_weight, 1.0)


def answer_shares(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the weights of answers' tokens, `[tokens]`, so that every answer has 1 in all, however long it is."""
    totals = weights.new_zeros(int(rows.max()) + 1 if len(rows) else 0).index_add(0, rows, weights)
    return weights / totals[rows]
