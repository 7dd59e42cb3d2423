"""Result files, written whole or not at all; and what decides whether results still hold: the contents of others."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
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


def content_digest(files: Iterable[Path], folder: Path) -> str:
    """Return a digest of files' contents and of their names below a folder, in any order.

    It is the same for a copy in another place, and after a download of the same once more.

    Raises:
        SenriError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise SenriError(f"{str(path)!r} cannot be read ({error.strerror}): check it and its folder.") from error
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
