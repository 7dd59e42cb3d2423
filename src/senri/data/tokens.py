"""Tokens of a document as a stream: the same tokens whatever the chunk size, and never all of them in memory.

The text is cut into blocks at line breaks and each block is tokenised by itself, without special tokens. Where a block
ends depends on the text and on the block size alone, so that reading can stop, skip and go on anywhere.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from senri.data.documents import Document
from senri.errors import SenriError


class Tokenizer(Protocol):
    """What is needed of a tokenizer; those of transformers have it."""

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Any:
        """Return a mapping whose `input_ids` are the tokens of `text`."""
        ...


class TokenStream(Iterable[int]):
    """The tokens of a document, made as they are asked for. Each iteration starts anew.

    Args:
        document: the text.
        tokenizer: a tokenizer of transformers.
        block_characters: longest block that is tokenised at once; a block ends at the last line break within it, else
            at the last blank, else at its length.

    Raises:
        SenriError: `block_characters` is below 1.
    """

    def __init__(self, document: Document, tokenizer: Tokenizer, block_characters: int) -> None:
        if block_characters < 1:
            raise SenriError(f"block_characters is {block_characters}, but it must be at least 1.")
        self.document = document
        self.tokenizer = tokenizer
        self.block_characters = block_characters

    def __iter__(self) -> Iterator[int]:
        for block in blocks(self.document.pieces(), self.block_characters):
            yield from self.tokenizer(block, add_special_tokens=False, verbose=False)["input_ids"]

    def estimate(self) -> int:
        """Return about how many tokens there are, from the first block alone."""
        first = next(blocks(self.document.pieces(), self.block_characters))
        tokens = len(self.tokenizer(first, add_special_tokens=False, verbose=False)["input_ids"])
        return round(tokens * self.document.characters / len(first))

    def skip(self, tokens: int) -> Iterator[int]:
        """Return an iterator that stands after the first `tokens` tokens.

        Raises:
            SenriError: `tokens` is negative.
        """
        if tokens < 0:
            raise SenriError(f"cannot skip {tokens} tokens: the number must be 0 or more.")
        return islice(iter(self), tokens, None)


def blocks(pieces: Iterable[str], size: int) -> Iterator[str]:
    """Cut a text that comes in pieces into blocks of at most `size` characters, the same ones however it was pieced."""
    buffer = ""
    for piece in pieces:
        buffer += piece
        start = 0
        # More than `size` characters must be at hand, so that the cut does not depend on where a piece happens to end.
        while len(buffer) - start > size:
            end = _cut(buffer, start, size)
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


def _cut(text: str, start: int, size: int) -> int:
    for mark in ("\n", " "):
        if (found := text.rfind(mark, start, start + size)) >= 0:
            return found + 1
    return start + size


def chunks(tokens: Iterable[int], size: int) -> Iterator[Tensor]:
    """Yield `[1, size]` int64 tensors of consecutive tokens; the last may be shorter.

    Raises:
        SenriError: `size` is below 1.
    """
    if size < 1:
        raise SenriError(f"chunk size is {size}, but it must be at least 1.")
    iterator = iter(tokens)
    while chunk := list(islice(iterator, size)):
        yield torch.tensor([chunk], dtype=torch.int64)
