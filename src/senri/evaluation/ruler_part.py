"""RULER as a part of an evaluation: a unit for each task and length, a heat map of the scores."""

from collections.abc import Callable
from typing import Any

import numpy as np

from senri.errors import SenriError
from senri.evaluation.charts import heat_map_figure, short_count
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.ruler import RulerSettings, ruler_units
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit

_SAID = 10


def ruler_part_units(subject: Subject, settings: RulerSettings) -> list[Unit]:
    """Return a unit for each task and length.

    Raises:
        SenriError: as `ruler_units`; a model whose folder or Hub id is not known, which lm-eval's generators need.
    """
    if not subject.source:
        raise SenriError(
            "RULER's generators load the tokenizer themselves: give the subject its source, a folder or Hub id."
        )
    cells = ruler_units(
        subject.model, subject.tokenizer, settings, tokenizer_path=subject.source, session=subject.session
    )
    return [Unit(key, settings.samples, _running(key, run)) for key, run in cells]


def ruler_outcome(subject: Subject, settings: RulerSettings, results: list[dict[str, Any]]) -> Outcome:
    """Average over tasks; show the scores as a heat map."""
    tasks, lengths = settings.task_names, sorted(settings.lengths)
    scores = {(result["task"], result["length"]): result["score"] for result in results}
    grid = np.array([[scores[task, length] for length in lengths] for task in tasks])
    means = [float(grid[:, index].mean()) for index in range(len(lengths))]
    columns = [short_count(length) for length in lengths]
    figure = heat_map_figure({"RULER": grid}, columns, tasks, "tokens of a prompt", "", "score")
    rows = [[task, *(f"{100 * score:.1f}" for score in line)] for task, line in zip(tasks, grid, strict=True)]
    rows.append(["mean", *(f"{100 * mean:.1f}" for mean in means)])
    outputs = [
        [
            result["task"],
            f"{output['prompt_tokens']:,}",
            ", ".join(output["gold"]),
            output["generated"].strip(),
            f"{output['score']:.2f}",
        ]
        for result in results
        for output in result["outputs"][:1]
    ]
    said = ", ".join(f"{100 * mean:.1f} at {name}" for name, mean in zip(columns, means, strict=True))
    samples = sum(result["samples"] for result in results)
    return Outcome(
        headline=f"mean {said}",
        results={"cells": results, "means": dict(zip(map(str, lengths), means, strict=True))},
        counts={"samples": samples, "tasks": len(tasks)},
        summary=[
            f"Mean score of {len(tasks)} of RULER's 13 tasks: {said} (0 to 100).",
            f"{settings.samples} samples of each task and length, made and scored by lm-eval. "
            + (
                "Prompts are read as streams, whole."
                if subject.is_senri
                else "Prompts are cut to what the model allows."
            ),
        ],
        tables=[
            Table("RULER", ("task", *columns), rows, "Share of the right answers that were given, in percent."),
            Table("The first answer of each task", ("task", "prompt", "right", "said", "score"), outputs[:_SAID]),
        ],
        pictures=[Picture("ruler", figure, "Score of each task, by tokens of the prompt.")],
    )


def _running(key: str, run: Callable[[], dict[str, Any]]) -> Callable[[Scratch], dict[str, Any]]:
    task, _, length = key.partition("@")

    def run_unit(_: Scratch) -> dict[str, Any]:
        return {"task": task, "length": int(length), **run()}

    return run_unit
