"""Tables and heat maps of a needle test, with the controls in every table."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from senri.evaluation.charts import heat_map_figure, short_count
from senri.evaluation.figures import human_bytes
from senri.evaluation.needle.settings import Kind, NeedleSettings
from senri.evaluation.needle.text import open_haystack
from senri.evaluation.needle.units import CONDITIONS, LEFT_OUT, MEMORY, NO_MEMORY, OTHER_SAMPLE
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.subject import Subject

_LEAK_ABOVE = 0.5
"""Controls that answer more than this share of the questions know the answers from elsewhere."""

_TITLES = {
    "single": "single needle",
    "multi_key": "several keys, one asked",
    "multi_value": "several values of one key, all asked",
    "multi_query": "several keys asked at once",
}
_SAID = 8


def needle_outcome(subject: Subject, settings: NeedleSettings, results: list[dict[str, Any]]) -> Outcome:
    """Average over samples, by kind, length and depth, in every condition."""
    by_condition = {
        condition: [
            {**answer, "kind": text["kind"], "length": text["length"], "sample": text["sample"]}
            for text in results
            for answer in text["answers"]
            if answer["condition"] == condition
        ]
        for condition in CONDITIONS
    }
    lengths, depths = sorted(settings.lengths), sorted(settings.depths)
    grids = {kind: _grid(by_condition[MEMORY], kind, lengths, depths) for kind in settings.kinds}
    figure = heat_map_figure(
        {_TITLES[kind]: grid for kind, grid in grids.items()},
        [short_count(length) for length in lengths],
        [f"{100 * depth:.0f}%" for depth in depths],
        "tokens read",
        "depth of the needle",
        "exact match",
    )
    total = _share(by_condition[MEMORY], "exact")
    without = _column(NO_MEMORY, subject.is_senri)
    counts = {
        "texts": len(results),
        "questions": len(by_condition[MEMORY]),
        "reads": _added(text["reads"] for text in results),
        "reads_of_one_text": results[0]["reads"],
        "tokens_read": sum(text["tokens_read"] for text in results),
    }
    haystack = open_haystack(settings, subject.tokenizer)
    return Outcome(
        headline=f"exact match {total:.0%}; {without} {_share(by_condition[NO_MEMORY], 'exact'):.0%}",
        results={
            "cells": _cells(by_condition, settings.kinds, lengths, depths),
            "process_bytes": {str(length): _largest(results, length) for length in lengths},
            "haystack": haystack.description,
            "texts": results,
        },
        counts=counts,
        summary=[
            f"{total:.0%} of {len(by_condition[MEMORY])} questions answered exactly; controls: "
            f"{without} {_share(by_condition[NO_MEMORY], 'exact'):.0%}, "
            f"needle left out {_share(by_condition[LEFT_OUT], 'exact'):.0%}, "
            f"another sample's {_share(by_condition[OTHER_SAMPLE], 'exact'):.0%}.",
            _how_read(subject, settings, results),
            f"Haystack: {haystack.description}; values: {settings.values}; {settings.samples} samples a cell.",
        ],
        warnings=_warnings(by_condition),
        tables=[
            *(_table(kind, by_condition, lengths, subject.is_senri) for kind in settings.kinds),
            _memory_table(results, lengths),
            _said(by_condition[MEMORY]),
        ],
        pictures=[Picture("needle", figure, "Exact match, by tokens read and depth of the needle.")],
    )


def _how_read(subject: Subject, settings: NeedleSettings, results: list[dict[str, Any]]) -> str:
    reads = ", ".join(f"{count} {condition}" for condition, count in results[0]["reads"].items())
    if settings.reading == "shared":
        return (
            f"Shared reading: the needles of all {len(settings.depths)} depths lie in one text, and every question is "
            f"asked of a fork of the session that read it. Readings of one text: {reads}."
        )
    return (
        f"Separate reading: each depth has a text of its own, which is read from its needle on; what comes before is "
        f"read once. Readings of one text: {reads}."
    )


def _grid(answers: list[dict[str, Any]], kind: Kind, lengths: list[int], depths: list[float]) -> np.ndarray:
    return np.array(
        [
            [
                _share(
                    [one for one in answers if (one["kind"], one["length"], one["depth"]) == (kind, length, depth)],
                    "exact",
                )
                for length in lengths
            ]
            for depth in depths
        ]
    )


def _share(answers: Iterable[dict[str, Any]], name: str) -> float:
    values = [float(answer[name]) for answer in answers]
    return sum(values) / len(values) if values else float("nan")


def _cells(
    by_condition: dict[str, list[dict[str, Any]]], kinds: list[Kind], lengths: list[int], depths: list[float]
) -> list[dict[str, Any]]:
    cells = []
    for condition, answers in by_condition.items():
        for kind in kinds:
            for length in lengths:
                for depth in depths:
                    here = [
                        one for one in answers if (one["kind"], one["length"], one["depth"]) == (kind, length, depth)
                    ]
                    means = {name: _share(here, name) for name in ("exact", "found", "tokens_right")}
                    place = {"condition": condition, "kind": kind, "length": length, "depth": depth}
                    cells.append({**place, "samples": len(here), **means})
    return cells


def _column(condition: str, is_senri: bool) -> str:
    """Return what a condition is called: a model without memory reads all of the text, or its last tokens."""
    return condition if is_senri else {MEMORY: "whole text", NO_MEMORY: "window only"}.get(condition, condition)


def _table(kind: Kind, by_condition: dict[str, list[dict[str, Any]]], lengths: list[int], is_senri: bool) -> Table:
    rows = []
    for length in lengths:
        row = [f"{length:,}"]
        for answers in by_condition.values():
            here = [one for one in answers if (one["kind"], one["length"]) == (kind, length)]
            row.append(
                f"{_share(here, 'exact'):.0%} / {_share(here, 'found'):.0%} / {_share(here, 'tokens_right'):.0%}"
            )
        rows.append(row)
    return Table(
        f"Needle in a haystack: {_TITLES[kind]}",
        ("tokens read", *(_column(condition, is_senri) for condition in by_condition)),
        rows,
        "Exact match / values found / answer tokens that are the likeliest given those before; all depths together. "
        "The last three columns are controls: what they reach does not come from reading the needle.",
    )


def _memory_table(results: list[dict[str, Any]], lengths: list[int]) -> Table:
    rows = []
    for length in lengths:
        here = [text for text in results if text["length"] == length]
        reads = _added(text["reads"] for text in here)
        row = [f"{length:,}", str(len(here)), ", ".join(f"{count} {name}" for name, count in reads.items())]
        rows.append([*row, human_bytes(_largest(results, length))])
    return Table("What the readings took", ("tokens read", "texts", "readings", "process memory"), rows)


def _said(answers: list[dict[str, Any]]) -> Table:
    """Show what was said, the wrong answers first: they tell most."""
    shown = sorted(answers, key=lambda one: (one["exact"], one["length"], one["depth"]))[:_SAID]
    rows = [
        [
            f"{one['length']:,}",
            f"{100 * one['depth']:.0f}%",
            one["expected"],
            one["said"].strip(),
            f"{one['tokens_right']:.0%}",
        ]
        for one in shown
    ]
    columns = ("tokens read", "depth", "expected", "said", "tokens right")
    return Table("Some answers, wrong ones first", columns, rows)


def _warnings(by_condition: dict[str, list[dict[str, Any]]]) -> list[str]:
    found = []
    for condition, answers in by_condition.items():
        if condition in (MEMORY, NO_MEMORY):
            continue
        if (share := _share(answers, "exact")) > _LEAK_ABOVE:
            found.append(
                f"{condition}: {share:.0%} exact although the needle is not in the text; the question gives it away."
            )
    return found


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def _largest(results: list[dict[str, Any]], length: int) -> int:
    return max(int(text["process_bytes"]) for text in results if text["length"] == length)
