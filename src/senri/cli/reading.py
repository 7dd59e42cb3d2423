"""Reading a stream of tokens into a session with a progress bar, saving now and then, stopping in order."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from senri.cli.interruption import noticed_stops

if TYPE_CHECKING:
    from senri.data import TokenStream
    from senri.evaluation import ReadingRecord
    from senri.models import Session


@dataclass(frozen=True)
class Reading:
    """What one run of `read_stream` did.

    Args:
        records: one for each chunk.
        position: tokens of the text that have been read, those of earlier runs included.
        stopped: someone asked to stop before the end.
        finished: nothing of the text is left.
    """

    records: "list[ReadingRecord]"
    position: int
    stopped: bool
    finished: bool


def read_stream(
    session: "Session",
    stream: "TokenStream",
    *,
    start: int,
    stop: int | None,
    chunk_size: int,
    save_every_seconds: float,
    save: Callable[[int], None],
) -> Reading:
    """Read tokens `start` to `stop` of a text, and save at the end, whatever ended it in order.

    Args:
        session: what reads.
        stream: the text.
        start: tokens of it that were read before.
        stop: first token that is not read; None for the end of the text.
        chunk_size: tokens of one forward pass.
        save_every_seconds: seconds between two savings.
        save: keeps the session; is given the position in the text.
    """
    from senri.data import chunks
    from senri.evaluation import read_chunks

    tokens = stream.skip(start)
    wanted = tokens if stop is None else islice(tokens, max(stop - start, 0))
    records: list[ReadingRecord] = []
    position, saved_at = start, time.monotonic()
    with noticed_stops() as request, _progress() as progress:
        name = stream.document.name
        total = stop if stop is not None else max(stream.estimate(), start)
        task = progress.add_task(name, total=total, completed=start)
        for record in read_chunks(session, chunks(wanted, chunk_size)):
            records.append(record)
            position += record.chunk_tokens
            progress.update(task, completed=position, total=max(total, position))
            progress.detail = _detail(record)
            if request.asked:
                break
            if time.monotonic() - saved_at >= save_every_seconds:
                save(position)
                saved_at = time.monotonic()
        else:
            progress.update(task, total=position)
        if records:
            save(position)
    return Reading(records, position, stopped=request.asked, finished=_at_end(tokens))


def _at_end(tokens: Iterator[int]) -> bool:
    return next(tokens, None) is None


class _ReadingProgress(Progress):
    """A progress bar with a second line below it, so that nothing is cut off in a narrow terminal."""

    detail = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.detail:
            yield Text(self.detail)


def _progress() -> _ReadingProgress:
    return _ReadingProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _detail(record: "ReadingRecord") -> str:
    from senri.evaluation.figures import human_bytes

    carried = human_bytes(record.state_bytes + record.window_bytes)
    process = human_bytes(record.process_bytes)
    return f"{record.tokens_per_second:,.0f} tokens/s | state {carried} | process memory {process}"
