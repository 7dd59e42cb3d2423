"""Documents to train on, to choose by and to report on: whole books or files, each in one of the three splits alone."""

import csv
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from senri.data.documents import Document, open_documents
from senri.data.hub_texts import HUB_TEXTS, hub_texts
from senri.data.unwrap import unwrap as unwrapped
from senri.errors import SenriError

Split = Literal["train", "validation", "test"]
Texts = Iterator[tuple[str, Iterator[str]]]

MANIFEST = "MANIFEST.tsv"
"""A table in a folder of texts; its columns `file` and `split` say which document is in which split."""

_MANIFEST_SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Corpus:
    """The documents of a split, in an order of their own.

    Args:
        name: what it is called in messages and reports.
        fingerprint: changes when the text does, and with nothing else.
        texts: begins anew; gives each document's name and its text in pieces, never all of it at once.
    """

    name: str
    fingerprint: str
    texts: Callable[[], Texts]


def open_corpus(source: str | Path, split: Split, *, held_out: Sequence[float], seed: int, unwrap: bool) -> Corpus:
    """Open the documents of a split.

    A folder is shared out by its `MANIFEST.tsv` if it has one with the columns `file` (with or without the suffix) and
    `split` (train, valid, validation, test; a file with any other word, or without a line, is in none), else by
    document and `held_out`. pg19 has splits of its own. Documents of a folder come in an order that the seed decides,
    so that the first tokens of a corpus are a fair sample of it.

    Args:
        source: a text file, a folder of them, or `pg19` or `pile` of the Hub, which are read as a stream.
        split: which part.
        held_out: shares of the documents for validation and for test. Both 0: nothing is held out and all of the source
            is the split, whichever it is; for sources that are files or folders of their own for each split.
        seed: which documents are held out, and their order.
        unwrap: join the lines of a paragraph, for texts with hard line breaks.

    Raises:
        SenriError: the source cannot be read, the shares leave nothing to train on, a single file is to be shared out,
            or no document is in the split.
    """
    if len(held_out) != 2 or min(held_out) < 0 or sum(held_out) >= 1:
        raise SenriError(f"held_out is {list(held_out)}, but it must be two shares that are below 1 together.")
    shares = (held_out[0], held_out[1])
    if str(source) in HUB_TEXTS:
        texts, identity = hub_texts(str(source), split, shares, seed)
        return _corpus(f"{source} ({split})", [identity], texts, unwrap)
    documents = sorted(open_documents(source), key=lambda document: _rank(document.name, seed))
    path = Path(source)
    if path.is_dir():
        return _local(f"{path.resolve().name} ({split})", _of_split(path, documents, split, shares), unwrap)
    if split != "train" and any(shares):
        raise SenriError(
            f"{str(source)!r} is a single text, which cannot be shared out by document: name a file of its own for "
            f"{split}, or a folder."
        )
    return _local(documents[0].name, documents, unwrap)


def _local(name: str, documents: list[Document], unwrap: bool) -> Corpus:
    def texts() -> Texts:
        return ((document.name, document.pieces()) for document in documents)

    return _corpus(name, [document.sha256 for document in documents], texts, unwrap)


def _corpus(name: str, parts: Sequence[str], texts: Callable[[], Texts], unwrap: bool) -> Corpus:
    fingerprint = hashlib.sha256("\n".join([f"unwrap={unwrap}", *parts]).encode()).hexdigest()
    if not unwrap:
        return Corpus(name, fingerprint, texts)
    return Corpus(name, fingerprint, lambda: ((title, unwrapped(pieces)) for title, pieces in texts()))


def _of_split(folder: Path, documents: list[Document], split: Split, shares: tuple[float, float]) -> list[Document]:
    named = _manifest(folder)
    if named is not None:
        _check_named(folder, documents, named)
        chosen = [document for document in documents if _named_split(document, named) == split]
        how = f"none with the split {split} in {MANIFEST}"
    elif any(shares):
        # Counts, not a threshold for each: a small folder has its documents for validation, too.
        spare = len(documents) - 1
        validation = min(max(1, round(shares[0] * len(documents))), spare) if shares[0] else 0
        test = min(max(1, round(shares[1] * len(documents))), spare - validation) if shares[1] else 0
        held = validation + test
        parts = {"validation": documents[:validation], "test": documents[validation:held], "train": documents[held:]}
        chosen = parts[split]
        how = f"none for {split} with the shares {shares[0]:g} and {shares[1]:g}"
    else:
        return documents
    if not chosen:
        raise SenriError(
            f"folder {str(folder)!r} has {len(documents)} documents, but {how}: name a source of its own for {split}."
        )
    return chosen


def _manifest(folder: Path) -> dict[str, str] | None:
    """Return each file's split, or None where the folder has no such table."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SenriError(f"{str(path)!r} cannot be read as UTF-8 text ({error}): check the file.") from error
    reader = csv.DictReader((line for line in lines if line.strip()), delimiter="\t", quoting=csv.QUOTE_NONE)
    if not {"file", "split"} <= {*(reader.fieldnames or ())}:
        return None
    return {(row["file"] or "").strip(): _MANIFEST_SPLITS.get((row["split"] or "").strip(), "") for row in reader}


def _check_named(folder: Path, documents: list[Document], named: dict[str, str]) -> None:
    present = {name for document in documents for name in _names(document)}
    for file, split in named.items():
        if split and file not in present:
            raise SenriError(
                f"{str(folder / MANIFEST)!r} names {file!r}, but the folder has no such text: correct the table."
            )


def _named_split(document: Document, named: dict[str, str]) -> str:
    return next((named[name] for name in _names(document) if name in named), "")


def _names(document: Document) -> tuple[str, str]:
    """Return the document's file in its folder, with the suffix and without."""
    path = Path(document.name)
    return path.as_posix(), path.with_suffix("").as_posix()


def _rank(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}-{name}".encode()).hexdigest()
