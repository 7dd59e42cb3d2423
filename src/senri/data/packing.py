"""Sentences packed into blocks of tokens without padding: for training, and for scoring apart from their like."""

import random
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from senri.data.tokens import Tokenizer
from senri.errors import SenriError

EOS = "eos"
"""The separator that is the tokenizer's end-of-text token."""


def separator_tokens(separator: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that stand between sentences.

    Args:
        separator: a text such as a line break, or `EOS` for the tokenizer's end-of-text token.
        tokenizer: makes the tokens.

    Raises:
        SenriError: an empty separator, or a tokenizer without an end-of-text token.
    """
    if separator == EOS:
        token = getattr(tokenizer, "eos_token_id", None)
        if token is None:
            raise SenriError(
                "separator is 'eos', but the tokenizer has no end-of-text token: name a text such as '\\n'."
            )
        return [int(token)]
    ids = tokens_of(separator, tokenizer)
    if not ids:
        raise SenriError(f"separator is {separator!r}, but it must have a token, such as a line break.")
    return ids


def tokens_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a text by itself, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def pack(
    sentences: Sequence[str], tokenizer: Tokenizer, block_tokens: int, seed: int | str, separator: str = "\n"
) -> Tensor:
    """Make training blocks of sentences: shuffled, one after the other, cut wherever a block is full.

    Every sentence is tokenised by itself and followed by the separator, so that it has the tokens it has alone. A block
    may begin and end within a sentence; what is left after the last full block is dropped (another seed drops others).

    Args:
        sentences: in any order.
        tokenizer: makes the tokens.
        block_tokens: tokens of a block.
        seed: of the order; the same seed gives the same blocks.
        separator: as for `separator_tokens`.

    Returns:
        Token ids `[blocks, block_tokens]`, int64.

    Raises:
        SenriError: `block_tokens` is below 1, a separator without tokens, or too few sentences for one block.
    """
    if block_tokens < 1:
        raise SenriError(f"block_tokens is {block_tokens}, but it must be at least 1.")
    between = separator_tokens(separator, tokenizer)
    order = list(sentences)
    random.Random(f"{seed}-pack").shuffle(order)
    ids = [token for sentence in order for token in (*tokens_of(sentence, tokenizer), *between)]
    blocks = len(ids) // block_tokens
    if not blocks:
        raise SenriError(f"block_tokens is {block_tokens}, but all sentences together have only {len(ids)} tokens.")
    return torch.tensor(ids[: blocks * block_tokens], dtype=torch.int64).view(blocks, block_tokens)


def pack_apart(sizes: Sequence[int], names: Sequence[Set[str]], room: int) -> list[list[int]]:
    """Share out whole sentences over blocks so that no two of a block have a name in common.

    Each goes into the first block with room where none of its names has occurred, so the order given stays within a
    block.

    Args:
        sizes: tokens of each sentence, with its separator.
        names: of what each speaks of.
        room: most tokens of a block.

    Returns:
        Indices of the sentences, block by block.

    Raises:
        SenriError: a sentence that is longer than a block.
    """
    blocks: list[list[int]] = []
    left: list[int] = []
    taken: list[set[str]] = []
    for index, (size, own) in enumerate(zip(sizes, names, strict=True)):
        if size > room:
            raise SenriError(
                f"a sentence has {size} tokens with its separator, more than the {room} of a block: raise it."
            )
        place = next((b for b in range(len(blocks)) if left[b] >= size and not taken[b] & own), len(blocks))
        if place == len(blocks):
            blocks.append([])
            left.append(room)
            taken.append(set())
        blocks[place].append(index)
        left[place] -= size
        taken[place] |= own
    return blocks
