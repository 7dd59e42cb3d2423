"""Reports: one HTML page that needs nothing else, its pictures as PNG, and the same numbers as JSON."""

import base64
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from senri.evaluation.figures import png_bytes
from senri.evaluation.files import make_folder, write_bytes

_VERSIONS_OF = ("senri", "torch", "transformers", "safetensors", "tokenizers", "numpy")


@dataclass(frozen=True)
class Table:
    """A table of the page: every cell is text already."""

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
class Report:
    """What a run found.

    Args:
        title: heading.
        summary: sentences, the most important first.
        command: the words that were typed to get it.
        settings: the resolved settings as plain data.
        results: every number, as plain data for the JSON file.
        warnings: what a reader must know before believing the numbers.
        tables: shown below the pictures.
        pictures: shown below the summary.
    """

    title: str
    summary: Sequence[str]
    command: Sequence[str]
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default=())


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS_OF}


def write_report(folder: Path, report: Report) -> Path:
    """Write `report.html`, `report.json` and the pictures into `folder`, and return the page's path.

    Raises:
        SenriError: the folder or a file cannot be written.
    """
    make_folder(folder)
    images = []
    for picture in report.pictures:
        content = png_bytes(picture.figure)
        write_bytes(folder / f"{picture.name}.png", content)
        images.append({"data": base64.b64encode(content).decode(), "caption": picture.caption})
    command = shlex.join(report.command)
    environment = Environment(
        loader=PackageLoader("senri.evaluation"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html").render(
        report=report,
        command=command,
        images=images,
        versions=versions(),
        settings=json.dumps(report.settings, indent=2, ensure_ascii=False),
    )
    write_bytes(folder / "report.html", page.encode())
    write_json(folder / "report.json", {"command": command, "settings": report.settings, "results": report.results})
    return folder / "report.html"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write results as JSON, with the versions they depend on.

    Raises:
        SenriError: the file cannot be written.
    """
    content = json.dumps({**values, "versions": versions()}, indent=2, ensure_ascii=False)
    write_bytes(path, content.encode() + b"\n")
