"""TrainingRows: what the trainer's data loader takes, one sequence a row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from senri.errors import SenriError
from senri.training.frozen_base import FrozenBase

PLACES = ("question_start", "answer_start")
"""Columns of needle samples: where the question and the answer begin; -1 in plain text."""


class TrainingRows(Dataset[dict[str, Any]]):
    """Sequences of one length.

    Args:
        ids: rows with `input_ids`, and with `PLACES` where only answers are trained.
        answers: give the places too.
    """

    def __init__(self, ids: Sequence[dict[str, Any]], answers: bool) -> None:
        self._ids, self._answers = ids, answers
        self.frozen_base: FrozenBase | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._ids[index]
        found = {"input_ids": torch.as_tensor(row["input_ids"], dtype=torch.int64)}
        if self._answers:
            found |= {place: torch.tensor(int(row[place])) for place in PLACES}
        if self.frozen_base is not None:
            found["lower_states"] = self.frozen_base[index]
        return found

    @property
    def tokens(self) -> Sequence[Tensor]:
        """The token ids of all rows."""
        return _Tokens(self._ids)

    def stretch(self, start: int, count: int) -> Tensor:
        """Return a stretch of all rows one after the other, `[count]`."""
        length, pieces = len(self.tokens[0]), []
        while count > 0:
            row, column = divmod(start, length)
            piece = self.tokens[row][column : column + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)


class _Tokens(Sequence[Tensor]):
    """The token ids of rows, made tensors as they are asked for."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return torch.as_tensor(self._rows[index]["input_ids"], dtype=torch.int64)


def whole_batches(rows: Any, batch_size: int) -> Any:
    """Leave out the last rows that do not fill a batch, so that every step is of the same size.

    Raises:
        SenriError: there are fewer rows than a batch takes.
    """
    count = len(rows) // batch_size * batch_size
    if not count:
        raise SenriError(
            f"the training text gives {len(rows)} sequences, but training.batch_size is {batch_size}: give more text, "
            f"or make training.batch_size or training.max_length smaller."
        )
    return rows.select(range(count))
