"""How much each token of an answer counts."""

import torch
from torch import Tensor


def begins_answer(rows: Tensor) -> Tensor:
    """Return which tokens are the first of their rows, `[tokens]`; rows as in `answer_shares`."""
    return rows != torch.cat([rows.new_tensor([-1]), rows[:-1]])


def answer_shares(rows: Tensor, first_share: float, is_text: Tensor | None = None) -> Tensor:
    """Return each token's share of its answer, `[tokens]`; every answer has 1 in all, however long it is.

    An answer that has begun goes on much more easily than it begins: there, the tokens before are those of the text.

    Args:
        rows: which answer each token is of, `[tokens]`, ascending; an answer's tokens stand in order.
        first_share: of the first token, where there are further ones.
        is_text: `[tokens]`, where this is no answer but plain text, in which all tokens count the same; None: nowhere.
    """
    counts = torch.bincount(rows)[rows].float()
    is_even = counts == 1 if is_text is None else is_text | (counts == 1)
    first = torch.where(is_even, 1 / counts, first_share)
    return torch.where(begins_answer(rows), first, (1 - first) / (counts - 1).clamp(min=1))
