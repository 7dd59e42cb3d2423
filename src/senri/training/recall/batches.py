"""Batches of the losses `finding` and `recall`: a haystack each, and what is asked of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from senri.models.modeling_senri import SenriForCausalLM
from senri.training.recall.config import FindingConfig, WindowConfig
from senri.training.recall.haystack_config import HaystackConfig
from senri.training.recall.haystacks import Asked, Haystacks
from senri.training.recall.kept import KeptRuns


class FindingBatches:
    """Makes batches for `Finding`; the trainer's collator.

    What enters the memory's layer in questions, behind plain text, is kept, and with it what the model without
    a memory makes of them.

    Args:
        haystacks: to draw from.
        model: a Senri model whose layers below the memory are frozen.
        config: what is asked for.
        finding: settings of the loss.
        folder: where states of questions are kept.
        dtype: of the states that are kept.
        half: run frozen layers in bfloat16.
    """

    def __init__(
        self,
        haystacks: Haystacks,
        model: SenriForCausalLM,
        config: HaystackConfig,
        finding: FindingConfig,
        folder: Path,
        dtype: str,
        half: bool = False,
    ) -> None:
        self._haystacks, self._config, self.kinds = haystacks, config, haystacks.kinds
        self._finding = finding
        start_layer = haystacks.base.start_layer
        runs, windows, questions = haystacks.runs, haystacks.windows, folder / "questions"
        self._kept = KeptRuns(model, runs, windows, start_layer, questions, dtype, outputs=True, half=half)

    def __call__(self, items: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """Return the fields of `Finding.forward` for the haystack that some numbered samples stand for."""
        number = items[0]["number"]
        meeting_alone = number // self._haystacks.batch_size < self._finding.meeting_first
        drawn = self._haystacks.draw(number, passages=True, most_facts=meeting_alone)
        margin, end = self._haystacks.margin, drawn.start + drawn.length
        fits = [one for one, place in self._haystacks.texts if not drawn.start - margin < place < end]
        chosen = drawn.rng.sample(fits, min(self._config.text_questions, len(fits)))
        asked: list[tuple[Asked, int | None]] = [*drawn.asked, *((one, None) for one in chosen)]
        numbers = [one.number for one, _ in asked]
        windows = [self._kept.window(number) for number in numbers]
        points = []
        for one, begin in asked:
            places = torch.full((len(one.ids) - 1,), -1)
            there = [
                -1 if point < 0 else drawn.columns(point) if begin is None else begin + point for point in one.points
            ]
            places[one.answer - 1 :] = torch.tensor(there)
            points.append(places)
        return {
            "states": drawn.states[None],
            "ids": drawn.ids[None],
            "asking": pad_sequence(self._kept.states(numbers), batch_first=True)[:, :-1],
            "asking_ids": pad_sequence([torch.tensor(one.ids[:-1]) for one, _ in asked], batch_first=True),
            "before": pad_sequence(windows, batch_first=True, padding_value=-1, padding_side="left"),
            "targets": _targets([one for one, _ in asked]),
            "points": pad_sequence(points, batch_first=True, padding_value=-1),
            "outputs": pad_sequence(self._kept.outputs(numbers), batch_first=True)[:, :-1],
            "kinds": torch.tensor([one.kind for one, _ in asked]),
            "hidden": drawn.hidden,
            "meeting_alone": torch.tensor(meeting_alone),
            "times_longer": torch.tensor(self._finding.times_longer ** drawn.rng.random()),
            "fainter": torch.tensor(self._finding.fainter * drawn.rng.random()),
        }


class RecallBatches:
    """Makes batches for `Recall`; the trainer's collator.

    Args:
        haystacks: to draw from, with as many tokens behind them as the longest window and the plain text have.
        window: of what stands between a haystack and its questions.
        text_tokens: of plain text that goes on behind the window.
    """

    def __init__(self, haystacks: Haystacks, window: WindowConfig, text_tokens: int) -> None:
        self._haystacks, self._window, self._text_tokens = haystacks, window, text_tokens
        self.kinds = haystacks.kinds

    def __call__(self, items: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """Return the fields of `Recall.forward` for the haystack that some numbered samples stand for."""
        drawn = self._haystacks.draw(items[0]["number"], passages=False)
        base, end = self._haystacks.base, drawn.start + drawn.length
        near = self._window.draw(drawn.rng)
        asked = [one for one, _ in drawn.asked]
        return {
            "states": torch.cat([drawn.states, base.stretch(end, near)])[None],
            "ids": torch.cat([drawn.ids, self._haystacks.rows.stretch(end, near)])[None],
            "window": torch.tensor(near),
            "questions": pad_sequence([torch.tensor(one.ids[one.context :]) for one in asked], batch_first=True)[
                :, :-1
            ],
            "targets": _targets(asked, own_context=False),
            "kinds": torch.tensor([one.kind for one in asked]),
            "going_on": base.stretch(end + near, self._text_tokens)[None],
        }


class NumberedSamples(torch.utils.data.Dataset[dict[str, int]]):
    """The numbers of samples, which a collator makes when they are asked for.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"number": index}


def _targets(asked: Sequence[Asked], own_context: bool = True) -> Any:
    """Return the token that follows each, where it is asked for, else -100; `[questions, tail]`."""
    rows = []
    for one in asked:
        skipped = 0 if own_context else one.context
        ids = torch.tensor(one.ids[skipped:])
        rows.append(torch.where(torch.arange(len(ids)) >= one.answer - skipped, ids, -100)[1:])
    return pad_sequence(rows, batch_first=True, padding_value=-100)
