"""Documents: a text file, a folder of them, or the Python language reference; checked once, then read in pieces.

A text is never held as a whole: it is checked and hashed in one pass over its files, and every later pass reads the
files again in pieces. Line ends become `\\n`, a leading byte order mark is dropped, the files of a folder are parted by
an empty line.
"""

import codecs
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from senri.errors import SenriError

PYTHON_REFERENCE = "python-reference"
"""Name of the text that ships with CPython as `pydoc_data.topics`; it is what is read when nothing is named."""

TEXT_SUFFIXES = (".md", ".org", ".rst", ".tex", ".text", ".txt")
_PIECE_BYTES = 1 << 20
_FILE_BREAK = "\n\n"
# Tab, line and page ends, backspace, escape and the DOS end-of-file mark do occur in texts; other C0 controls do not.
_CONTROL = re.compile(rb"[\x00-\x07\x0e-\x19\x1c-\x1f]")


@dataclass(frozen=True)
class Document:
    """A checked text.

    Args:
        name: what it is called in progress lines, reports and session files.
        sha256: hash of its text as UTF-8, after line ends are made equal.
        characters: its length.
        files: where it lies, in reading order; none for the Python reference.
    """

    name: str
    sha256: str
    characters: int
    files: tuple[Path, ...] = ()

    def pieces(self) -> Iterator[str]:
        """Yield the text from its start in pieces of no particular size.

        Raises:
            SenriError: a file has gone or is no longer text.
        """
        return _pieces(self.files) if self.files else _python_reference()


def open_document(source: Path | str | None = None) -> Document:
    """Find and check a text.

    Args:
        source: a file (any suffix), a folder (its files with a suffix of `TEXT_SUFFIXES`, sorted by path, subfolders
            too), or nothing (also `python-reference`) for the Python language reference.

    Raises:
        SenriError: the text is missing, empty, binary, not UTF-8, or cannot be opened; names the file and the byte.
    """
    if source is None or str(source) == PYTHON_REFERENCE:
        return _checked(PYTHON_REFERENCE, ())
    path = Path(source)
    if path.is_dir():
        return _checked(path.name or str(path), _files_of(path))
    if not path.exists():
        raise SenriError(f"text {str(path)!r} does not exist: name a text file or a folder of text files.")
    return _checked(path.name, (path,))


def open_documents(source: Path | str | None = None) -> list[Document]:
    """Find and check texts: as `open_document`, but every file of a folder is a document of its own.

    Raises:
        SenriError: as `open_document`.
    """
    if source is not None and (path := Path(source)).is_dir():
        return [_checked(str(file.relative_to(path)), (file,)) for file in _files_of(path)]
    return [open_document(source)]


def _checked(name: str, files: tuple[Path, ...]) -> Document:
    digest, characters, blank = hashlib.sha256(), 0, True
    for piece in _pieces(files) if files else _python_reference():
        digest.update(piece.encode())
        characters += len(piece)
        blank = blank and not piece.strip()
    if blank:
        where = str(files[0] if len(files) == 1 else files[0].parent) if files else name
        raise SenriError(f"text {where!r} is empty: name a text that has words to read.")
    return Document(name, digest.hexdigest(), characters, files)


def _files_of(folder: Path) -> tuple[Path, ...]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in TEXT_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise SenriError(f"folder {str(folder)!r} holds no text: files there should end in {', '.join(TEXT_SUFFIXES)}.")
    return tuple(found)


def _pieces(files: tuple[Path, ...]) -> Iterator[str]:
    for index, path in enumerate(files):
        if index:
            yield _FILE_BREAK
        try:
            yield from _decoded(path)
        except OSError as error:
            raise SenriError(f"text {str(path)!r} cannot be read ({error.strerror}): check the file.") from error


def _decoded(path: Path) -> Iterator[str]:
    utf8 = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    offset, start = 0, True
    with path.open("rb") as stream:
        while True:
            raw = stream.read(_PIECE_BYTES)
            if control := _CONTROL.search(raw):
                raise SenriError(
                    f"text {str(path)!r} is binary (control byte 0x{control[0][0]:02x} at byte "
                    f"{offset + control.start()}): name a plain text file."
                )
            # The decoder keeps back an unfinished character; an error counts from the first byte it kept.
            kept = len(utf8.getstate()[0])
            try:
                text = utf8.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                position = offset - kept + error.start
                raise SenriError(
                    f"text {str(path)!r} is not UTF-8 (byte {position}): save it as UTF-8 and try again."
                ) from error
            offset += len(raw)
            text = line_ends.decode(text, final=not raw)
            if start and text:
                text, start = text.removeprefix("\ufeff"), False
            if text:
                yield text
            if not raw:
                return


def _python_reference() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise SenriError("this Python ships no language reference (pydoc_data): name a text with --text.") from error
    for index, text in enumerate(topics.values()):
        if index:
            yield _FILE_BREAK
        yield text
