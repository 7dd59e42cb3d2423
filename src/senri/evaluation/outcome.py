"""What a measurement gives back: numbers as plain data, and the tables, pictures and sentences that show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table of a page: every cell is text already."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its PNG file, and what it shows in words."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Outcome:
    """What one measurement of one model found.

    Args:
        headline: the result in a few words, for the report's first table.
        results: every number, as plain data for the JSON file.
        counts: how many samples, tokens, readings; plain data.
        summary: sentences, the most important first.
        warnings: what a reader must know before believing the numbers.
        tables: shown below the pictures.
        pictures: at least one.
        html: further HTML for the report; everything in it that comes from a text must be escaped already.
    """

    headline: str
    results: Mapping[str, Any]
    counts: Mapping[str, Any]
    pictures: Sequence[Picture]
    summary: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    html: str = ""
