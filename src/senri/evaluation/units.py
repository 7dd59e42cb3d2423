"""Running a measurement in units: with progress, over many processes, and resumed where it stopped.

A measurement names its units of work. Each result is appended to a file as soon as it is there; the next run of the
same measurement takes it from there. Long units can keep unfinished work of their own (`Scratch`). Under `accelerate
launch` every process does its share and all of them return all results.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from senri.errors import SenriError
from senri.evaluation.files import make_folder, write_bytes
from senri.evaluation.processes import process_state
from senri.models import Session


@dataclass(frozen=True)
class Unit:
    """A piece of work that is done as a whole and whose result is kept.

    Args:
        key: names it among the units of its measurement, the same in every run.
        size: how much work it is, in the measurement's own measure (tokens, items); for the progress bar.
        run: does it and returns plain data (what JSON can hold). It tells `Scratch.advance` how far it is.
    """

    key: str
    size: int
    run: Callable[["Scratch"], dict[str, Any]]


class Scratch:
    """What a unit may use while it runs: to report progress, and to keep unfinished work.

    Args:
        path: file without suffix for unfinished work; None keeps nothing.
        save_every_seconds: time between two savings.
        on_progress: told how much further the unit got.
    """

    def __init__(self, path: Path | None, save_every_seconds: float, on_progress: Callable[[int], None]) -> None:
        self._path, self._save_every, self._on_progress = path, save_every_seconds, on_progress
        self._saved_at = time.monotonic()
        self.reported = 0

    def advance(self, work: int) -> None:
        """Report so much more work as done."""
        self.reported += work
        self._on_progress(work)

    def keep(self, session: Any, facts: Callable[[], dict[str, Any]]) -> None:
        """Keep a session and what goes with it, if the last time is long enough ago; other readers keep nothing.

        Args:
            session: what has read so far.
            facts: returns plain data; only called when it is time.
        """
        if isinstance(session, Session):
            self.keep_file(session.save, session.tokens_read, facts)

    def keep_file(self, save: Callable[[Path], None], position: int, facts: Callable[[], dict[str, Any]]) -> None:
        """Keep a file and what goes with it, if the last time is long enough ago.

        Args:
            save: writes it.
            position: how far the unit has read; no two files have the same.
            facts: as in `keep`.
        """
        if self._path is None or time.monotonic() - self._saved_at < self._save_every:
            return
        # The facts name the file they belong to, so that a stop between the two files leaves a matching pair.
        name = f"{self._path.name}.{position}.senri"
        save(self._path.with_name(name))
        before = self._stored()
        write_bytes(self._path.with_suffix(".json"), json.dumps({"session": name, "facts": facts()}).encode())
        if before and before["session"] != name:
            self._path.with_name(before["session"]).unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def kept(self, model: Any) -> tuple[Session, dict[str, Any]] | None:
        """Return the session and facts that an interrupted run kept, or None."""
        kept = self.kept_file()
        try:
            return None if kept is None else (Session.load(kept[0], model), kept[1])
        except SenriError:  # cut off or gone: the unit begins anew
            return None

    def kept_file(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the file and facts that an interrupted run kept, or None; the file may be damaged."""
        stored = self._stored()
        return (
            None if stored is None or self._path is None else (self._path.with_name(stored["session"]), stored["facts"])
        )

    def clear(self) -> None:
        """Drop what was kept."""
        if self._path is not None:
            for path in self._path.parent.glob(f"{self._path.name}.*"):
                path.unlink(missing_ok=True)

    def _stored(self) -> dict[str, Any] | None:
        if self._path is None:
            return None
        try:
            stored: dict[str, Any] = json.loads(self._path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return stored


@dataclass(frozen=True)
class Done:
    """What `run_units` did.

    Args:
        results: of all units, in their order.
        resumed: how many of them an earlier run had done.
        seconds: time of this run.
        processes: how many shared the work.
    """

    results: list[dict[str, Any]]
    resumed: int
    seconds: float
    processes: int


def run_units(
    units: Sequence[Unit],
    title: str,
    folder: Path | None = None,
    identity: str = "",
    *,
    save_every_seconds: float = float("inf"),
    progress: bool = True,
) -> Done:
    """Do all units that have no result yet, and return the results of all.

    Args:
        units: the work.
        title: what the progress bar says.
        folder: where results and unfinished work are kept; None keeps nothing.
        identity: of model, data and settings; results of another identity are dropped.
        save_every_seconds: time between two savings of unfinished work.
        progress: show a bar on stderr.

    Raises:
        SenriError: two units with the same key, or a folder that cannot be written.
    """
    keys = [unit.key for unit in units]
    if len({*keys}) != len(keys):
        raise SenriError(f"{title}: two parts of the work have the same name; give every sample a name of its own.")
    began = time.monotonic()
    process = process_state()
    store = _Store(folder, identity) if folder is not None else None
    finished: dict[str, dict[str, Any]] = {}
    if store is not None:
        if process.is_main_process:
            store.drop_others()
        process.wait_for_everyone()
        finished = store.read()
    finished = {key: finished[key] for key in keys if key in finished}
    resumed = len(finished)
    missing = [unit for unit in units if unit.key not in finished]
    process.wait_for_everyone()  # all have read before anyone writes, so that all share out the same work
    mine = missing[process.process_index :: process.num_processes]
    new: dict[str, dict[str, Any]] = {}
    with _bar(progress and process.is_main_process and bool(mine)) as bar:
        task = bar.add_task(title, total=sum(unit.size for unit in mine))
        for unit in mine:
            path = store.scratch_path(unit.key) if store is not None else None
            scratch = Scratch(path, save_every_seconds, lambda work: bar.advance(task, work))
            new[unit.key] = unit.run(scratch)
            bar.advance(task, unit.size - scratch.reported)
            if store is not None:
                store.append(unit.key, new[unit.key], process.process_index)
            scratch.clear()
    shared = gather_object([new]) if process.num_processes > 1 else [new]
    for part in shared:
        finished |= part
    return Done([finished[key] for key in keys], resumed, time.monotonic() - began, process.num_processes)


class _Store:
    """Results on disk: one file a process, one line a unit, and a stamp that says which measurement they belong to."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        make_folder(folder)

    def drop_others(self) -> None:
        """Delete what belongs to another identity."""
        stamp = self.folder / "identity"
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != self.identity:
            for path in (*self.folder.glob("units-*.jsonl"), *self.folder.glob("unfinished-*")):
                path.unlink()
            write_bytes(stamp, self.identity.encode())

    def read(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("units-*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a line that was cut off by a stop
                    entry = json.loads(line)
                    found[entry["key"]] = entry["result"]
        return found

    def append(self, key: str, result: dict[str, Any], process_index: int) -> None:
        path = self.folder / f"units-{process_index}.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                # A line break first: an earlier run may have been stopped within a line.
                file.write("\n" + json.dumps({"key": key, "result": result}))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SenriError(
                f"{str(path)!r} cannot be written ({error.strerror}): make room or name another --out."
            ) from error

    def scratch_path(self, key: str) -> Path:
        return self.folder / f"unfinished-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
    with bar:
        yield bar
