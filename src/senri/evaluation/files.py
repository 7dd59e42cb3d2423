"""Result files, written whole or not at all."""

import contextlib
import os
from pathlib import Path

from senri.errors import SenriError


def make_folder(path: Path) -> None:
    """Make a folder for results, and those above it.

    Raises:
        SenriError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SenriError(f"folder {str(path)!r} cannot be made ({error.strerror}): name another --out.") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its place, then move it there.

    Raises:
        SenriError: it cannot be written; what was at `path` before is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror or type(error).__name__
        raise SenriError(f"{str(path)!r} cannot be written ({reason}): make room or name another place.") from error
