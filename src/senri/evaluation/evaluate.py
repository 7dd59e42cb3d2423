"""One measurement from settings to files: units are run, shown, written, and the folder's report is made anew."""

import base64
import dataclasses
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from senri import __version__
from senri.errors import SenriError, nearest
from senri.evaluation.files import content_digest, make_folder, write_bytes
from senri.evaluation.outcome import Outcome, Table
from senri.evaluation.parts import PARTS
from senri.evaluation.processes import process_state
from senri.evaluation.report import Image, Section, write_json, write_page, write_picture
from senri.evaluation.settings import default_settings
from senri.evaluation.subject import Subject
from senri.evaluation.units import Done, run_units
from senri.settings import save_resolved

RESULT_FILE, REPORT_FILE = "result.json", "report.html"
_SECTION_FILE, _SETTINGS_FILE = "section.html", "settings.yaml"
TITLE = "Senri: evaluation"


@dataclass(frozen=True)
class Evaluation:
    """A finished measurement.

    Attributes:
        part: its name.
        outcome: what was found.
        done: how the work went.
        folder: where result.json, settings.yaml and the pictures lie; None when nothing was written.
    """

    part: str
    outcome: Outcome
    done: Done
    folder: Path | None


def evaluate(
    subject: Subject,
    part: str,
    settings: Any = None,
    *,
    out: Path | str | None = None,
    label: str = "",
    command: Sequence[str] = (),
    save_every_seconds: float | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a model in one way.

    Args:
        subject: the model.
        part: a name of `PARTS`, such as "needle".
        settings: of that part; those of `config/evaluation.yaml` if None.
        out: folder of the report; the run gets a folder of its own in it, and goes on there if it was interrupted. None
            writes nothing.
        label: tells runs of the same part and model apart.
        command: the words that were typed, for the report.
        save_every_seconds: time between two savings of unfinished work; that of `config/evaluation.yaml` if None.
        progress: show a progress bar on stderr.

    Raises:
        SenriError: an unknown part, settings of another part, bad input, or a folder that cannot be written.
    """
    if part not in PARTS:
        raise SenriError(f"there is no measurement {part!r}: {nearest(part, PARTS)}")
    chosen = PARTS[part]
    defaults = default_settings()
    settings = getattr(defaults, part) if settings is None else settings
    if not isinstance(settings, chosen.settings):
        raise SenriError(f"the settings of {part!r} are a {chosen.settings.__name__}, not a {type(settings).__name__}.")
    folder = None if out is None else Path(out) / run_name(part, subject.name, label)
    main = process_state().is_main_process
    if folder is not None and main:
        make_folder(folder)
    done = run_units(
        chosen.units(subject, settings),
        f"{part} {subject.name}",
        folder,
        _identity(subject, part, settings),
        save_every_seconds=defaults.save_every_seconds if save_every_seconds is None else save_every_seconds,
        progress=progress,
    )
    outcome = chosen.outcome(subject, settings, done.results)
    if folder is not None and main:
        _write(folder, subject, part, label, settings, outcome, done, command)
        write_index(folder.parent)
    return Evaluation(part, outcome, done, folder)


def run_name(part: str, model: str, label: str = "") -> str:
    """Return the name of a run's folder, such as `needle-uuids-model`."""
    words = [part, label, model]
    return "-".join(re.sub(r"[^\w.+=]+", "-", word).strip("-") for word in words if word)


def write_index(out: Path) -> Path:
    """Make `report.html` of all runs in a folder, and return its path.

    Raises:
        SenriError: it cannot be written.
    """
    found = []
    for path in sorted(out.glob(f"*/{RESULT_FILE}")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found.append((list(PARTS).index(result["part"]), result["model"], path, _section(path.parent, result)))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a result of ours, or a damaged one: the others are still worth a page
    write_page(out / REPORT_FILE, TITLE, [section for *_, section in sorted(found, key=lambda entry: entry[:3])])
    return out / REPORT_FILE


def _write(
    folder: Path,
    subject: Subject,
    part: str,
    label: str,
    settings: Any,
    outcome: Outcome,
    done: Done,
    command: Sequence[str],
) -> None:
    for picture in outcome.pictures:
        write_picture(folder, picture)
    if outcome.html:
        write_bytes(folder / _SECTION_FILE, outcome.html.encode())
    else:
        (folder / _SECTION_FILE).unlink(missing_ok=True)
    save_resolved(settings, folder / _SETTINGS_FILE)
    write_json(
        folder / RESULT_FILE,
        {
            "part": part,
            "title": PARTS[part].title + (f" ({label})" if label else ""),
            "model": subject.name,
            "source": subject.source,
            "session_tokens": None if subject.session is None else subject.session.tokens_read,
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join(command) if command else f"senri.evaluation.evaluate(subject, {part!r})",
            "device": str(subject.device),
            "dtype": str(subject.model.dtype).removeprefix("torch."),
            "settings": asdict(settings),
            "counts": dict(outcome.counts),
            "results": dict(outcome.results),
            "seconds": done.seconds,
            "units": {"all": len(done.results), "of_earlier_runs": done.resumed},
            "processes": done.processes,
            "headline": outcome.headline,
            "summary": list(outcome.summary),
            "warnings": list(outcome.warnings),
            "tables": [asdict(table) for table in outcome.tables],
            "pictures": [{"name": picture.name, "caption": picture.caption} for picture in outcome.pictures],
        },
    )


def _section(folder: Path, result: dict[str, Any]) -> Section:
    html = folder / _SECTION_FILE
    names = [field.name for field in dataclasses.fields(Table)]
    return Section(
        title=result["title"],
        summary=result["summary"],
        command=result["command"],
        settings=result["settings"],
        versions=result["versions"],
        warnings=result["warnings"],
        tables=[Table(**{name: table[name] for name in names}) for table in result["tables"]],
        images=[
            Image(base64.b64encode((folder / f"{one['name']}.png").read_bytes()).decode(), one["caption"])
            for one in result["pictures"]
        ],
        html=html.read_text(encoding="utf-8") if html.is_file() else "",
        model=result["model"],
        headline=result["headline"],
        created=result["created"][:16].replace("T", " "),
    )


def _identity(subject: Subject, part: str, settings: Any) -> str:
    """Return a digest of all that decides the results: model, settings, and what is in files that settings name."""
    facts = [__version__, part, subject.identity(), _with_contents(asdict(settings), cache(_contents))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _with_contents(values: Any, contents: Callable[[str], str | None]) -> Any:
    """Return values with the contents of files and folders in the place of their names."""
    if isinstance(values, dict):
        return {name: _with_contents(value, contents) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_with_contents(value, contents) for value in values]
    return (contents(values) or values) if isinstance(values, str) else values


def _contents(name: str) -> str | None:
    """Return a digest of what is in a file or a folder; None for words that name neither."""
    try:
        path = Path(name)
        if not name or not (path.is_file() or path.is_dir()):  # what a pipe holds can be read but once
            return None
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    except (OSError, ValueError):  # too long for a name, or with characters that none has
        return None
    return content_digest(files, path if path.is_dir() else path.parent)
