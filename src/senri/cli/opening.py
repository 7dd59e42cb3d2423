"""Opening what commands work on: a model's folder, its tokenizer, a session; whatever is wrong is one sentence."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senri.errors import SenriError

if TYPE_CHECKING:
    from senri.models import SenriConfig, SenriForCausalLM, Session


def open_model(folder: Path) -> tuple["SenriForCausalLM", Any]:
    """Load a converted model and its tokenizer, quietly.

    Raises:
        SenriError: no such folder, not a Senri model, or files that cannot be read.
    """
    _check_senri(folder)
    quieten()
    from senri.models import SenriForCausalLM

    with readable(folder):
        model = SenriForCausalLM.from_pretrained(folder)
    return model, open_tokenizer(folder)


def open_config(folder: Path) -> "SenriConfig":
    """Load the configuration of a Senri model.

    Raises:
        SenriError: no such folder, not a Senri model, or a file that cannot be read.
    """
    _check_senri(folder)
    from senri.models import SenriConfig

    with readable(folder):
        config: SenriConfig = SenriConfig.from_pretrained(folder)
    return config


def _check_senri(folder: Path) -> None:
    model_type = model_type_of(folder)
    if model_type != "senri":
        raise SenriError(f"{folder} holds a {model_type!r} model, not a Senri model: run senri convert on it first.")


def open_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model's folder.

    Raises:
        SenriError: it cannot be read.
    """
    from transformers import AutoTokenizer

    with readable(folder):
        return AutoTokenizer.from_pretrained(folder)


def model_type_of(folder: Path) -> str:
    """Return `model_type` of a model's folder.

    Raises:
        SenriError: no such folder, or no config.json that says it.
    """
    if not folder.is_dir():
        raise SenriError(f"model folder {str(folder)!r} does not exist: make one with senri convert.")
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SenriError(f"{str(folder)!r} is not a model folder: its config.json is missing or damaged.") from error


def open_session(path: Path, model: "SenriForCausalLM") -> "Session":
    """Load a session; a memory file, such as `senri memory merge` writes, becomes a session without a window.

    Raises:
        SenriError: not a Senri file, damaged, or of another model.
    """
    from senri.memory import MemoryState
    from senri.memory.file import read_file
    from senri.models import Session

    if read_file(path)[1].kind == "session":
        return Session.load(path, model)
    session = Session(model)
    session.set_memory_state(MemoryState.load(path))
    return session


def check_session_place(path: Path) -> None:
    """Refuse a place where no session file can be written, before any work is done.

    Raises:
        SenriError: it is a folder, or lies in a folder that does not exist or cannot be written to.
    """
    if path.is_dir():
        raise SenriError(f"session {str(path)!r} is a folder: name a file such as book.senri.")
    if not path.parent.is_dir():
        raise SenriError(f"folder {str(path.parent)!r} of the session file does not exist: make it first.")
    from senri.conversion.output import check_writable

    check_writable(path.parent)


def quieten() -> None:
    """Keep transformers' own warnings and progress bars out of a command's output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what transformers raises about a folder's files into one sentence.

    Raises:
        SenriError: the folder cannot be read.
    """
    try:
        yield
    except SenriError:
        raise
    except Exception as error:  # safetensors, tokenizers and transformers each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SenriError(f"model folder {str(folder)!r} cannot be read ({reason}): convert it again.") from error
