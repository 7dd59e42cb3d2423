"""Table and heat map of a recall test, with the controls beside every number."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from senri.evaluation.charts import heat_map_figure, short_count
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.recall.settings import RecallSettings
from senri.evaluation.recall.units import CONDITIONS, IN_WINDOW, MEMORY, OTHER_SAMPLE, WINDOW_ONLY
from senri.evaluation.subject import Subject

_LEAK_ABOVE = 0.05
"""Controls that answer more than this share of the questions know the answers from elsewhere."""

_DEPTHS = 4
_WRONG = 40
"""Answers that the report shows at most."""


def recall_outcome(subject: Subject, settings: RecallSettings, results: list[dict[str, Any]]) -> Outcome:
    """Average over samples, by task and length, in every condition."""
    answers = [{**answer, "length": text["length"]} for text in results for answer in text["answers"]]
    lengths = sorted(settings.lengths)
    cells = [_cell(answers, task, length) for task in settings.tasks for length in lengths]
    by_cell = {(cell["task"], cell["length"]): cell for cell in cells}
    grid = np.array([[by_cell[task, length]["exact"][MEMORY] for length in lengths] for task in settings.tasks])
    figure = heat_map_figure(
        {"exact match": grid},
        [short_count(length) for length in lengths],
        settings.tasks,
        "tokens read",
        "task",
        "exact match",
    )
    rows = [
        [
            cell["task"],
            f"{cell['length']:,}",
            str(cell["samples"]),
            *(f"{cell['exact'][condition]:.1%} / {cell['tokens_right'][condition]:.1%}" for condition in CONDITIONS),
        ]
        for cell in cells
    ]
    depths = [f"{100 * first / _DEPTHS:.0f}-{100 * (first + 1) / _DEPTHS:.0f}%" for first in range(_DEPTHS)]
    deep = [[cell["task"], f"{cell['length']:,}", *(f"{share:.0%}" for share in cell["by_depth"])] for cell in cells]
    leaks = [
        f"{cell['task']} at {cell['length']:,} tokens: {condition} answers {cell['exact'][condition]:.0%} exactly, "
        f"although what is asked for is in neither window nor memory."
        for cell in cells
        for condition in (WINDOW_ONLY, OTHER_SAMPLE)
        if cell["exact"][condition] > _LEAK_ABOVE
    ]
    total, controls = _share(answers, MEMORY), [_share(answers, one) for one in (WINDOW_ONLY, OTHER_SAMPLE)]
    return Outcome(
        headline=f"exact match {total:.0%}; window only {controls[0]:.0%}",
        results={"cells": cells, "answers": answers},
        counts={"texts": len(results), "questions": sum(answer["condition"] == MEMORY for answer in answers)},
        summary=[
            f"{total:.1%} of the questions answered exactly; window only {controls[0]:.1%}, memory of another sample "
            f"{controls[1]:.1%}; no memory, but what is asked for in the window {_share(answers, IN_WINDOW):.1%}.",
            _how_read(settings),
        ],
        warnings=leaks,
        tables=[
            Table(
                "Recall",
                ("task", "tokens read", "samples", *CONDITIONS),
                rows,
                "Exact match / answer tokens that are the likeliest given those before. What is asked for lies in "
                "front of the window, so the next two columns show what can be guessed. The last one is the model "
                "without memory, with what is asked for right before the question.",
            ),
            Table("Exact match by depth of what is asked for", ("task", "tokens read", *depths), deep),
            _wrong_answers(answers),
        ],
        pictures=[Picture("recall", figure, "Exact match with the memory, by task and tokens read.")],
    )


def _wrong_answers(answers: list[dict[str, Any]]) -> Table:
    wrong = [answer for answer in answers if answer["condition"] == MEMORY and not answer["exact"]]
    rows = [
        [one["task"], f"{one['length']:,}", f"{one['depth']:.0%}", one["expected"], one["said"]]
        for one in sorted(wrong, key=lambda one: (one["task"], one["length"], one["depth"]))[:_WRONG]
    ]
    return Table(
        "Wrong answers with the memory",
        ("task", "tokens read", "depth", "expected", "said"),
        rows,
        f"{len(rows)} of {len(wrong)}. What is said is the likeliest token at each place of the right answer, given "
        f"the right ones before: as long as that, whatever comes first.",
    )


def _how_read(settings: RecallSettings) -> str:
    if settings.reading == "full":
        return "Every sample's text was read whole."
    return (
        f"Up to {settings.places} samples of a task share one reading of a text by the layers below the memory, and "
        f"each has a memory of its own; what they make of a sample's sentences and of the {settings.behind} tokens "
        f"behind them was computed anew."
    )


def _cell(answers: list[dict[str, Any]], task: str, length: int) -> dict[str, Any]:
    here = [answer for answer in answers if (answer["task"], answer["length"]) == (task, length)]
    own = [answer for answer in here if answer["condition"] == MEMORY]
    return {
        "task": task,
        "length": length,
        "samples": len(own),
        **{
            name: {condition: _share(here, condition, name) for condition in CONDITIONS}
            for name in ("exact", "tokens_right")
        },
        "by_depth": [
            _share([answer for answer in own if int(answer["depth"] * _DEPTHS) == depth], MEMORY)
            for depth in range(_DEPTHS)
        ],
    }


def _share(answers: Iterable[dict[str, Any]], condition: str, name: str = "exact") -> float:
    values = [float(answer[name]) for answer in answers if answer["condition"] == condition]
    return sum(values) / len(values) if values else float("nan")
