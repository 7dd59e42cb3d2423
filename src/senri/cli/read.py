"""`senri read`: a text goes through the model in a stream, and what was understood stays in a session file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from senri.cli.interruption import Stopped
from senri.cli.opening import check_session_place, open_model, open_session
from senri.cli.reading import read_stream
from senri.errors import SenriError
from senri.settings import load_settings, save_resolved

if TYPE_CHECKING:
    from senri.models import Session


@dataclass
class ReadSettings:
    """What `config/read.yaml` holds; the file says what each is.

    Raises:
        SenriError: a number that is too small.
    """

    tokens: int | Literal["all"]
    chunk_size: int
    block_characters: int
    save_every_seconds: float

    def __post_init__(self) -> None:
        for name in ("tokens", "chunk_size", "block_characters"):
            value = getattr(self, name)
            if value != "all" and value < 1:
                raise SenriError(f"{name} is {value}, but it must be at least 1.")
        if self.save_every_seconds <= 0:
            raise SenriError(f"save_every_seconds is {self.save_every_seconds}, but it must be above 0.")


def read(
    *overrides: str,
    model: Path,
    session: Path,
    text: Path | None = None,
    tokens: int | Literal["all"] | None = None,
    config: Path | None = None,
) -> None:
    """Read a text into a session file; the same command goes on where it stopped.

    Ctrl-C finishes the chunk at hand and keeps what was read. Another text is read after what the session holds.

    Args:
        overrides: settings such as chunk_size=256.
        model: folder of a converted model.
        session: the session file; made if it does not exist.
        text: a text file or a folder of them; the Python language reference if not given.
        tokens: read the text up to this token, or all of it.
        config: a YAML file of settings instead of config/read.yaml.
    """
    words = [*overrides, *([f"tokens={tokens}"] if tokens is not None else [])]
    settings = load_settings(ReadSettings, config or "read", words)
    check_session_place(session)
    from senri.data import TokenStream, open_document

    document = open_document(text)
    loaded, tokenizer = open_model(model)
    from senri.models import Session, SourceProgress

    live = open_session(session, loaded) if session.exists() else Session(loaded)
    start = _position_in(live, document.sha256)

    def save(position: int) -> None:
        live.source = SourceProgress(document.name, document.sha256, position)
        live.save(session)

    done = read_stream(
        live,
        TokenStream(document, tokenizer, settings.block_characters),
        start=start,
        stop=None if settings.tokens == "all" else settings.tokens,
        chunk_size=settings.chunk_size,
        save_every_seconds=settings.save_every_seconds,
        save=save,
    )
    if not done.records:
        reason = "to its end" if done.finished else f"up to token {start:,} (more: --tokens)"
        print(f"{document.name} was read {reason} before: nothing to do.")
        return
    save_resolved(settings, session.with_suffix(".read.yaml"))
    kept = f"{document.name}: {done.position:,} tokens read, kept in {session} ({live.tokens_read:,} tokens in all)"
    if done.stopped and not done.finished:
        raise Stopped(f"stopped. {kept}; the same command goes on from there.")
    print(f"{kept}.")


def _position_in(session: "Session", sha256: str) -> int:
    """Return the tokens of this text that the session has read; it knows only of the text it read last."""
    source = session.source
    return source.tokens if source is not None and source.sha256 == sha256 else 0
