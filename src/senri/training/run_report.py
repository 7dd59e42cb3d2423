"""A run as a page: loss curves of all stages, held-out perplexity, what each memory does, and the resolved settings."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from senri.evaluation.charts import PALETTE, bar_figure
from senri.evaluation.outcome import Picture, Table
from senri.evaluation.report import Report, write_report
from senri.training.callbacks import read_metrics
from senri.training.config import Recipe
from senri.training.three_stage import BASE, METRICS_FILE, TrainingOutcome

_SMOOTHING = 0.9
_FAINT = 0.25
_SHARES = {
    "correct": "right by the read",
    "met": "nearest key is the right one",
    "first": "first tokens right by the read",
    "ended": "of ends said",
}
_STRENGTHS = {
    "kept": "write: answers",
    "passed": "write: everything else",
    "asked": "read: before answers",
    "text": "read: plain text",
}


def write_run_report(outcome: TrainingOutcome, recipe: Recipe, command: Sequence[str]) -> Path:
    """Write `report.html`, `report.json` and the pictures of a run, and return the page's path.

    Raises:
        SenriError: a file cannot be written.
    """
    metrics = outcome.folder / METRICS_FILE
    lines = read_metrics(metrics) if metrics.is_file() else []
    pictures = []
    if lines:
        pictures.append(
            Picture("loss", loss_figure(lines), "Loss of each stage against its steps: every step, and smoothed.")
        )
        if any(name in line for line in lines for name in (*_SHARES, *_STRENGTHS)):
            about = "Shares of tokens found, and how strongly the memory writes and reads; means over the last steps."
            pictures.append(Picture("recall", recall_figure(lines), about))
    if outcome.perplexities:
        bars = bar_figure({"held-out perplexity": outcome.perplexities})
        pictures.append(Picture("perplexity", bars, "Perplexity of held-out text, read as a stream."))
    return write_report(
        outcome.folder,
        Report(
            title=f"Senri: training {recipe.experiment.name}",
            summary=_summary(outcome),
            command=command,
            settings=json.loads(json.dumps(dataclasses.asdict(recipe), default=str)),
            results={
                "stages": [dataclasses.asdict(stage) for stage in outcome.stages],
                "perplexities": outcome.perplexities,
                "memory": {what: {str(i): use for i, use in layers.items()} for what, layers in outcome.memory.items()},
                "finished": outcome.finished,
            },
            tables=tables(outcome),
            pictures=pictures,
        ),
    )


def tables(outcome: TrainingOutcome) -> list[Table]:
    """Return the tables of a run: perplexities, stages, and what each memory does."""
    found = []
    base = outcome.perplexities.get(BASE)
    if outcome.perplexities:
        rows = [
            [what, f"{value:.4g}", "" if base is None else f"{value / base:.4f}"]
            for what, value in outcome.perplexities.items()
        ]
        found.append(Table("Held-out perplexity", ["", "perplexity", "of the base's"], rows))
    if outcome.stages:
        rows = [
            [
                stage.name,
                f"{stage.steps:,}",
                f"{stage.tokens:,}",
                f"{stage.parameters:,}",
                f"{stage.loss:.4f}",
                f"{stage.seconds / 60:.1f}",
                f"{stage.tokens / max(stage.seconds, 1e-9):,.0f}",
            ]
            for stage in outcome.stages
        ]
        columns = ["stage", "steps", "tokens", "trained", "last loss", "minutes", "tokens/s"]
        found.append(Table("Stages", columns, rows))
    rows = [
        [what, str(layer), *(f"{use[name]:.4g}" if name in use else "" for name in ("gate", "norm"))]
        for what, layers in outcome.memory.items()
        for layer, use in layers.items()
    ]
    if rows:
        note = "gate: mean share of the memory in its layer's output; norm: root mean square of M after one document."
        found.append(Table("Memories", ["", "layer", "gate", "norm"], rows, note))
    return found


def loss_figure(lines: Sequence[dict[str, Any]]) -> Figure:
    """Draw the loss of every stage, one panel each.

    Args:
        lines: of `metrics.jsonl`.
    """
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    figure = Figure(figsize=(4.6 * len(stages), 3.6), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for index, (stage, panel) in enumerate(zip(stages, panels, strict=True)):
        own = [line for line in lines if line["stage"] == stage]
        steps, losses = [line["step"] for line in own], [line["loss"] for line in own]
        colour = PALETTE[index % len(PALETTE)]
        panel.plot(steps, losses, color=colour, alpha=_FAINT)
        panel.plot(steps, _smoothed(losses), color=colour, linewidth=2)
        panel.set(xlabel="step", ylabel="loss" if index == 0 else "")
        panel.set_title(stage, loc="left", fontsize=11)
        panel.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
        panel.grid(alpha=0.25)
    return figure


def recall_figure(lines: Sequence[dict[str, Any]]) -> Figure:
    """Draw what each stage of recall training finds, and below it how strongly it writes and reads, smoothed.

    Args:
        lines: of `metrics.jsonl`; some have measures of recall.
    """
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    kinds = [(_SHARES, "share"), (_STRENGTHS, "mean strength")]
    kinds = [(measures, what) for measures, what in kinds if any(measures.keys() & line.keys() for line in lines)]
    figure = Figure(figsize=(max(7.5, 4.6 * len(stages)), 3.6 * len(kinds)), layout="constrained")
    rows = figure.subplots(len(kinds), len(stages), squeeze=False, sharex="col", sharey="row")
    for row, (measures, what) in zip(rows, kinds, strict=True):
        for stage, panel in zip(stages, row, strict=True):
            for index, (name, label) in enumerate(measures.items()):
                points = [(line["step"], line[name]) for line in lines if line["stage"] == stage and name in line]
                steps, values = zip(*points, strict=True) if points else ((), ())
                panel.plot(steps, _smoothed(values), color=PALETTE[index], linewidth=2, label=label)
            panel.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
            panel.grid(alpha=0.25)
        row[0].set_ylabel(what)
        row[-1].legend(frameon=False, fontsize=8)
        if measures is _SHARES:
            row[0].set_ylim(0, 1)
        elif any(line.get(name, 0) > 0 for line in lines for name in measures):
            row[0].set_yscale("log")
    for stage, top, bottom in zip(stages, rows[0], rows[-1], strict=True):
        top.set_title(stage, loc="left", fontsize=11)
        bottom.set_xlabel("step")
    return figure


def _summary(outcome: TrainingOutcome) -> list[str]:
    sentences = []
    if not outcome.finished:
        sentences.append("This run was stopped; the same command goes on.")
    base = outcome.perplexities.get(BASE)
    last = next(reversed(outcome.perplexities.items()), None)
    if base is not None and last is not None and last[0] != BASE:
        sentences.append(
            f"Held-out perplexity {last[0]} is {last[1]:.4g}, {last[1] / base:.3f} of the base's {base:.4g}."
        )
    return sentences


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return an exponential average, without the pull of its start."""
    found, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        found.append(mean / weight)
    return found
