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
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other breaks, such as U+2028
    except OSError as error:
        raise SenriError(f"data {str(path)!r} cannot be read ({error.strerror}): name a .jsonl file.") from error
    except UnicodeDecodeError as error:
        raise SenriError(f"data {str(path)!r} is not UTF-8 text: name a .jsonl file.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SenriError(f"line {number} of {str(path)!r} is not JSON: every line should be one.") from error
        for column in columns:
            if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
                raise SenriError(f"line {number} of {str(path)!r} has no text named {column!r}.")
        rows.append(dict(row))
    if not rows:
        raise SenriError(f"data {str(path)!r} is empty: name a .jsonl file with rows.")
    return rows


def hub_rows(repository: str, name: str, split: str) -> list[dict[str, Any]]:
    """Load a split of a data set from the Hub.

    Raises:
        SenriError: the library `datasets` is missing, or the data set cannot be had (no network, for one).
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SenriError(
            f"the data set {repository} is read with the library datasets: pip install 'senri[eval]', or name a local "
            f"file with data=..."
        ) from error
    try:
        return [dict(row) for row in load_dataset(repository, name, split=split)]
    except Exception as error:  # datasets, huggingface_hub and httpx each raise their own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SenriError(
            f"the data set {repository} cannot be had from the Hub ({reason}): name a local file with data=..."
        ) from error
