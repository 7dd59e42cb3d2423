"""Collections of texts on the Hub, read as a stream: never downloaded as a whole."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from senri.errors import SenriError


@dataclass(frozen=True)
class HubTexts:
    """Where a collection lies.

    Args:
        repository: of the Hub.
        column: which holds a document's text.
        has_splits: whether it has a validation and a test split of its own; else all is in its train split.
    """

    repository: str
    column: str
    has_splits: bool


HUB_TEXTS = {
    "pg19": HubTexts("emozilla/pg19", "text", has_splits=True),
    "pile": HubTexts("monology/pile-uncopyrighted", "text", has_splits=False),
}
"""The collections that are known by name."""


def hub_texts(
    name: str, split: str, shares: tuple[float, float], seed: int
) -> tuple[Callable[[], Iterator[tuple[str, Iterator[str]]]], str]:
    """Return a function that streams the documents of a split, and a string that tells it from all others.

    Args:
        name: of `HUB_TEXTS`.
        split: train, validation or test.
        shares: for validation and test, of a collection without splits, whose documents are shared out by a hash of
            their text; both 0 is all of it.
        seed: goes into the hash.

    Raises:
        SenriError: (while streaming) the library `datasets` is missing, or the collection cannot be had.
    """
    hub = HUB_TEXTS[name]
    if hub.has_splits:
        return lambda: _named(name, _stream(hub, split)), f"{hub.repository} {split}"
    if not any(shares):
        return lambda: _named(name, _stream(hub, "train")), f"{hub.repository} train"

    def texts() -> Iterator[tuple[str, Iterator[str]]]:
        return _named(name, (text for text in _stream(hub, "train") if _split(text, shares, seed) == split))

    return texts, f"{hub.repository} train, {split} of {shares[0]!r} {shares[1]!r} {seed}"


def _named(name: str, texts: Iterator[str]) -> Iterator[tuple[str, Iterator[str]]]:
    return ((f"{name} {index}", iter((text,))) for index, text in enumerate(texts))


def _split(text: str, shares: tuple[float, float], seed: int) -> str:
    """Return the split of a document; equal documents are in the same one."""
    digest = hashlib.sha256(f"{seed}-{text}".encode(errors="surrogatepass")).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    if place < shares[0]:
        return "validation"
    return "test" if place < sum(shares) else "train"


def _stream(hub: HubTexts, split: str) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SenriError(
            f"the data set {hub.repository} is read with the library datasets: pip install 'senri[train]', or name a "
            f"local file or folder."
        ) from error
    try:
        for row in load_dataset(hub.repository, split=split, streaming=True):
            yield row[hub.column]
    except Exception as error:  # datasets, huggingface_hub and httpx each raise their own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SenriError(
            f"the data set {hub.repository} cannot be had from the Hub ({reason}): name a local file or folder."
        ) from error
