"""Blocks of tokens to train on: documents one after the other, packed without padding, kept on disk and mapped.

The blocks are made once for a text, a tokenizer and a size; whoever asks again gets the same file. A file is written in
a folder of its own, which takes its name only when it is whole.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from senri.data.corpus import Corpus
from senri.data.tokens import blocks
from senri.errors import SenriError

if TYPE_CHECKING:
    from datasets import Dataset

_FILE = "blocks.arrow"
# Text tokenised at once: fast tokenizers share out what they are given over the cores.
_BATCH_CHARACTERS = 1 << 20
# Goes into every key; raise it when the same text would give other blocks than before.
_VERSION = 1


def token_blocks(
    corpus: Corpus,
    tokenizer: Any,
    block_tokens: int,
    *,
    cache: Path,
    tokens: int | None,
    block_characters: int,
    on_progress: Callable[[int], None] | None = None,
) -> "Dataset":
    """Return the tokens of a corpus in blocks, from the cache if they are there.

    The documents follow each other with the tokenizer's end-of-text token between them; what is left after the last
    full block is dropped. Processes that ask at the same time all do the work, and all return the file that was ready
    first; let the main one ask before the others.

    Args:
        corpus: the text.
        tokenizer: a tokenizer of transformers.
        block_tokens: tokens of a block.
        cache: folder for the blocks of all texts.
        tokens: most tokens in all; None for all there are.
        block_characters: longest text that is tokenised as one.
        on_progress: told now and then how many further characters have been tokenised.

    Returns:
        Rows with `input_ids`, exactly `block_tokens` of them, and `document`, which document of the corpus the block
        begins in.

    Raises:
        SenriError: a size below 1, a tokenizer without an end-of-text token, a corpus or a limit that is too small for
            a block, a cache that cannot be written, or the library `datasets` is missing.
    """
    try:
        from datasets import Dataset
    except ImportError as error:
        raise SenriError("blocks of tokens are kept with the library datasets: pip install 'senri[train]'.") from error
    for name, size in {"block_tokens": block_tokens, "block_characters": block_characters}.items():
        if size < 1:
            raise SenriError(f"{name} is {size}, but it must be at least 1.")
    if tokens is not None and tokens < block_tokens:
        raise SenriError(f"tokens is {tokens}, but it must be at least one block, block_tokens {block_tokens}.")
    separator = end_of_text(tokenizer)
    parts = (corpus.fingerprint, tokenizer_fingerprint(tokenizer), separator, block_tokens, tokens, block_characters)
    key = fingerprint("blocks", _VERSION, *parts)
    folder = cache / key
    if not (folder / _FILE).exists():
        most = None if tokens is None else tokens // block_tokens
        runs = _runs(corpus, tokenizer, separator, block_characters, on_progress)
        _into_place(folder, lambda path: _write(path, runs, corpus.name, block_tokens, most, key))
    return Dataset.from_file(str(folder / _FILE))


def end_of_text(tokenizer: Any) -> int:
    """Return the token that parts documents: the end of a text, or, where a tokenizer has none, its beginning.

    Raises:
        SenriError: it has neither.
    """
    for name in ("eos_token_id", "bos_token_id"):
        if (token := getattr(tokenizer, name, None)) is not None:
            return int(token)
    raise SenriError("the tokenizer has no token for the end or the beginning of a text: set its eos_token.")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of all that decides which tokens a text has."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return fingerprint(type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()))
    state = json.loads(backend.to_str())
    # How the last call cut and filled up is no property of the tokenizer.
    return fingerprint({name: value for name, value in state.items() if name not in ("truncation", "padding")})


def fingerprint(*parts: Any) -> str:
    """Return a hash of what JSON can hold, short enough for a file's name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _texts(corpus: Corpus, block_characters: int) -> Iterator[tuple[int, str]]:
    for document, (_, pieces) in enumerate(corpus.texts()):
        for text in blocks(pieces, block_characters):
            yield document, text


def _batches(corpus: Corpus, block_characters: int) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    characters = 0
    for document, text in _texts(corpus, block_characters):
        batch.append((document, text))
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _runs(
    corpus: Corpus,
    tokenizer: Any,
    separator: int,
    block_characters: int,
    on_progress: Callable[[int], None] | None,
) -> Iterator[NDArray[np.int32]]:
    """Yield `[2, tokens]`: tokens, and the document of each; a separator is the last token of its document."""
    before: int | None = None
    for batch in _batches(corpus, block_characters):
        texts = [text for _, text in batch]
        tokenised = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        ids: list[int] = []
        documents: list[int] = []
        for (document, _), run in zip(batch, tokenised, strict=True):
            if before is not None and document != before:
                ids.append(separator)
                documents.append(before)
            ids += run
            documents += [document] * len(run)
            before = document
        if on_progress is not None:
            on_progress(sum(map(len, texts)))
        yield np.array([ids, documents], dtype=np.int32)


def _write(
    path: Path, runs: Iterator[NDArray[np.int32]], name: str, block_tokens: int, most: int | None, key: str
) -> None:
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({"input_ids": List(Value("int32"), length=block_tokens), "document": Value("int32")})
    rows = 0
    rest = np.zeros((2, 0), dtype=np.int32)
    with ArrowWriter(features=features, path=str(path), fingerprint=key) as writer:
        for run in runs:
            rest = np.concatenate([rest, run], axis=1)
            full = rest.shape[1] // block_tokens
            if most is not None:
                full = min(full, most - rows)
            if full:
                ids, documents = rest[:, : full * block_tokens].reshape(2, full, block_tokens)
                writer.write_batch({"input_ids": ids, "document": documents[:, 0]})
                rest = rest[:, full * block_tokens :]
                rows += full
            if rows == most:
                break
        if not rows:
            raise SenriError(
                f"{name} has {rest.shape[1]} tokens, but a block has block_tokens {block_tokens}: name more text or "
                f"make blocks shorter."
            )
        writer.finalize()


def _into_place(folder: Path, write: Callable[[Path], None]) -> None:
    """Write the file into a temporary folder and rename that, unless another process was quicker."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        new = temporary / "new"  # with the permissions of any folder, which a temporary one does not have
        new.mkdir()
        write(new / _FILE)
        try:
            os.rename(new, folder)
        except OSError:
            if not (folder / _FILE).exists():
                raise
    except OSError as error:
        raise SenriError(f"blocks cannot be written to {folder.parent} ({error.strerror or error}).") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
