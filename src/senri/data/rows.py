"""Rows of a data set: a local JSON Lines file, or a data set of the Hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from senri.errors import SenriError


def read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Read a JSON Lines file whose every row has these columns of text.

    Raises:
        SenriError: the file is missing, is not JSON Lines, holds no row, or a row lacks a column.
    """
    return [row for _, row in numbered_rows(path, columns)]


def numbered_rows(
    path: Path, columns: tuple[str, ...], *, wanted: str = "a .jsonl file"
) -> list[tuple[int, dict[str, Any]]]:
    """Do as `read_rows`, and return with each row the number of its line, for callers with more to say about it.

    Args:
        path: of the file.
        columns: that every row has, with a text in each.
        wanted: what a complaint asks for in place of a file that cannot be read.

    Raises:
        SenriError: as `read_rows`.
    """
    rows = []
    try:
        # A text may hold other breaks, such as U+2028: only a line feed ends a line here.
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append((number, _row(line, columns, f"line {number} of {str(path)!r}")))
    except OSError as error:
        raise SenriError(f"data {str(path)!r} cannot be read ({error.strerror}): name {wanted}.") from error
    except UnicodeDecodeError as error:
        raise SenriError(f"data {str(path)!r} is not UTF-8 text: name {wanted}.") from error
    if not rows:
        raise SenriError(f"data {str(path)!r} is empty: name {wanted}.")
    return rows


def hub_rows(
    repository: str, name: str, split: str, *, local: str = "a local file with data=..."
) -> list[dict[str, Any]]:
    """Load a split of a data set from the Hub.

    Args:
        repository: of the Hub.
        name: of its configuration.
        split: of that.
        local: what a complaint offers instead.

    Raises:
        SenriError: the library `datasets` is missing, or the data set cannot be had (no network, for one).
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SenriError(
            f"the data set {repository} is read with the library datasets: pip install 'senri[eval]', or name {local}"
        ) from error
    try:
        return [dict(row) for row in load_dataset(repository, name, split=split)]
    except Exception as error:  # datasets, huggingface_hub and httpx each raise their own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SenriError(f"the data set {repository} cannot be had from the Hub ({reason}): name {local}") from error


def _row(line: str, columns: tuple[str, ...], place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SenriError(f"{place} is not JSON: every line should be one.") from error
    for column in columns:
        if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
            raise SenriError(f"{place} has no text named {column!r}.")
    return dict(row)
