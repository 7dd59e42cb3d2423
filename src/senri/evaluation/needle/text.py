"""The text of a needle test as a stream of tokens: a haystack of noise or of books, with needles hidden in it."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, cycle, islice
from typing import Any

from senri.data import Document, TokenStream, open_document
from senri.errors import SenriError
from senri.evaluation.needle.samples import Needle
from senri.evaluation.needle.settings import NeedleSettings

NOISE = "noise"
_ENDS = (".", "!", "?", "\n", '."', '!"', '?"', ".\N{RIGHT DOUBLE QUOTATION MARK}")
# A needle waits at most this many tokens for the end of a sentence; in a text without sentences it is put in anyway.
_PATIENCE = 200


class SentenceEnds:
    """Tells whether a token is the last of a sentence or a line.

    Args:
        tokenizer: a tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bool] = {}

    def __call__(self, token: int) -> bool:
        """Return whether it is."""
        if token not in self._known:
            self._known[token] = self._tokenizer.decode([token]).rstrip(" ").endswith(_ENDS)
        return self._known[token]


class Haystack:
    """Endless tokens to hide needles in, the same for the same seed; never all of them in memory.

    Args:
        source: `noise`, or a file or folder of text.
        tokenizer: a tokenizer of transformers.
        noise: the sentences that are repeated.
        block_characters: text tokenised at a time.
        seed: decides where reading begins in a text.

    Raises:
        SenriError: the text cannot be read, or noise without a token.
    """

    def __init__(self, source: str, tokenizer: Any, *, noise: str, block_characters: int, seed: int) -> None:
        self._tokenizer, self._block_characters, self._seed = tokenizer, block_characters, seed
        self._document: Document | None = None
        self._noise: list[int] = []
        self._ends_sentence = SentenceEnds(tokenizer)
        if source == NOISE:
            self._noise = self.encode(f" {noise.strip()}")
            if not self._noise:
                raise SenriError("noise is empty: give it a sentence or two.")
        else:
            self._document = open_document(source)

    @property
    def description(self) -> str:
        """What it is, for reports."""
        if self._document is None:
            return "repeated noise sentences"
        return f"{self._document.name}, sha256 {self._document.sha256[:12]}"

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a piece of text, without special ones."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(ids))

    def tokens(self, name: str) -> Iterator[int]:
        """Yield tokens without end: noise over and over, or a text from a place that the name decides, round and round.

        Args:
            name: of the sample.
        """
        if self._document is None:
            return cycle(self._noise)
        stream = TokenStream(self._document, self._tokenizer, self._block_characters)
        start = random.Random(f"{self._seed}-{name}").randrange(max(stream.estimate(), 1))
        return chain(stream.skip(start), self._around(stream))

    def ends_sentence(self, token: int) -> bool:
        """Whether a token is the last of a sentence or a line."""
        return self._ends_sentence(token)

    @staticmethod
    def _around(stream: TokenStream) -> Iterator[int]:
        while True:
            yield from stream


def hide(haystack: Haystack, name: str, needles: Sequence[Needle], length: int, start: int = 0) -> Iterator[int]:
    """Yield a text of exactly `length` tokens with needles in it, each after the first end of a sentence at its depth.

    Args:
        haystack: where the other tokens come from.
        name: of the sample; decides which part of a book is read.
        needles: what is hidden.
        length: tokens in all.
        start: leave out so many of the text's first tokens.

    Raises:
        SenriError: the needles alone are longer.
    """
    hidden = sorted(
        ((needle.depth, haystack.encode(f" {needle.sentence}")) for needle in needles), key=lambda one: one[0]
    )
    room = length - sum(len(ids) for _, ids in hidden)
    if room < 0:
        raise SenriError(
            f"a text of {length} tokens is too short for its needles, which have {length - room}: make lengths longer "
            f"or depths fewer."
        )
    waiting = [(round(depth * room), ids) for depth, ids in hidden]
    return islice(insert(islice(haystack.tokens(name), room), waiting, haystack.ends_sentence), start, None)


def insert(
    tokens: Iterable[int], needles: Sequence[tuple[int, list[int]]], ends_sentence: Callable[[int], bool]
) -> Iterator[int]:
    """Yield tokens with needles among them, each after the first end of a sentence from its place on.

    Args:
        tokens: the text.
        needles: the place of each, counted in tokens of the text alone, and its tokens; sorted by place.
        ends_sentence: tells which tokens end one.
    """
    waiting = list(needles)
    at_border = True
    for position, token in enumerate(tokens):
        while waiting and position >= waiting[0][0] and (at_border or position >= waiting[0][0] + _PATIENCE):
            yield from waiting.pop(0)[1]
        yield token
        at_border = ends_sentence(token)
    for _, ids in waiting:
        yield from ids


def open_haystack(settings: NeedleSettings, tokenizer: Any) -> Haystack:
    """Return the haystack of a needle test."""
    return Haystack(
        settings.haystack,
        tokenizer,
        noise=settings.noise,
        block_characters=settings.block_characters,
        seed=settings.seed,
    )
