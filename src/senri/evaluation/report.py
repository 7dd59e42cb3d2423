"""Reports: one HTML page that needs nothing else, its pictures as PNG, and the same numbers as JSON."""

import base64
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from senri.evaluation.figures import png_bytes
from senri.evaluation.files import make_folder, write_bytes
from senri.evaluation.outcome import Picture, Table

_VERSIONS_OF = ("senri", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "lm_eval")


@dataclass(frozen=True)
class Image:
    """A PNG file's content in base64, and what it shows in words."""

    data: str
    caption: str


@dataclass(frozen=True)
class Section:
    """What one run found, ready to be shown.

    Args:
        title: heading; on a page with one section that of the page.
        summary: sentences, the most important first.
        command: the words that were typed to get it.
        settings: the resolved settings as plain data.
        versions: of what the result depends on.
        warnings: what a reader must know before believing the numbers.
        tables: shown below the pictures.
        images: shown below the summary.
        html: shown below the tables as it is.
        model: what was measured, for the first table.
        headline: the result in a few words, for the first table.
        created: date and time, for the first table.
    """

    title: str
    summary: Sequence[str]
    command: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    images: Sequence[Image] = ()
    html: str = ""
    model: str = ""
    headline: str = ""
    created: str = ""


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
    pictures: Sequence[Picture] = ()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_report(folder: Path, report: Report) -> Path:
    """Write `report.html`, `report.json` and the pictures into `folder`, and return the page's path.

    Raises:
        SenriError: the folder or a file cannot be written.
    """
    make_folder(folder)
    section = Section(
        title=report.title,
        summary=report.summary,
        command=shlex.join(report.command),
        settings=report.settings,
        versions=versions(),
        warnings=report.warnings,
        tables=report.tables,
        images=[write_picture(folder, picture) for picture in report.pictures],
    )
    write_page(folder / "report.html", report.title, [section])
    values = {"command": section.command, "settings": report.settings, "results": report.results}
    write_json(folder / "report.json", values)
    return folder / "report.html"


def write_picture(folder: Path, picture: Picture) -> Image:
    """Write a figure as `<name>.png` into a folder and return it for a page.

    Raises:
        SenriError: the file cannot be written.
    """
    content = png_bytes(picture.figure)
    write_bytes(folder / f"{picture.name}.png", content)
    return Image(base64.b64encode(content).decode(), picture.caption)


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write an HTML page; with several sections a table of them comes first.

    Raises:
        SenriError: the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("senri.evaluation"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["pretty"] = lambda values: json.dumps(values, indent=2, ensure_ascii=False, default=str)
    page = environment.get_template("report.html").render(title=title, sections=sections)
    write_bytes(path, page.encode())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write results as JSON, with the versions they depend on.

    Raises:
        SenriError: the file cannot be written.
    """
    content = json.dumps({**values, "versions": versions()}, indent=2, ensure_ascii=False)
    write_bytes(path, content.encode() + b"\n")
