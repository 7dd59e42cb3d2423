"""The reversal curse: what a model knows of pairs in the order they were taught, and in the other one.

Source: Berglund et al., "The Reversal Curse: LLMs trained on 'A is B' fail to learn 'B is A'", arXiv:2309.12288.

Perplexity is taken over packed blocks of shuffled sentences of one direction, where no block tells twice of the same
pair, so that no sentence can be copied from its neighbours. The control exchanges completions between pairs and is
packed in the same way. Exact match shows each prompt by itself.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch.nn import functional as F

from senri.data.packing import pack_apart, separator_tokens, tokens_of
from senri.data.pairs import PairSentence, PairTemplates, distinct, read_pairs
from senri.errors import SenriError
from senri.evaluation.loglikelihood import EncodedPair, score_after
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit

FORWARD, BACKWARD = "forward", "backward"
RIGHT, WRONG, EXACT = "right pairs", "wrong pairs", "exact match"

# Sentences whose exact match is one unit of work.
_EXACT_GROUP = 32
# Positions whose log-softmax is made at once: 256 x 49,152 float32 values are 50 MB.
_LOSS_POSITIONS = 256


@dataclass
class ReversalSettings:
    """What the section `reversal` holds; `config/evaluation.yaml` says what each is.

    Args:
        data: folder of Berglund's files, or a CSV with a header.
        first: column of a CSV.
        second: column of a CSV.
        forward: template for a row of a CSV, `{first}` before `{second}`.
        backward: template for a row of a CSV, `{second}` before `{first}`.
        pairs: how many, drawn at random.
        separator: text between packed sentences; "eos" is the tokenizer's end-of-text token.
        pack_tokens: most tokens of one forward pass.
        seed: of the choice and order of sentences, and of the wrong pairs.

    Raises:
        SenriError: a template without its two halves, an empty separator, or a number out of range.
    """

    data: str | None
    first: str
    second: str
    forward: str
    backward: str
    pairs: int | Literal["all"]
    separator: str
    pack_tokens: int
    seed: int

    def __post_init__(self) -> None:
        _ = self.templates  # refuses what is wrong with them
        if self.pairs != "all" and self.pairs < 2:
            raise SenriError(
                f"pairs is {self.pairs}, but it must be at least 2: wrong pairs are made of two right ones."
            )
        if not self.separator:
            raise SenriError("separator is empty, but it must have a character, such as a line break.")
        if self.pack_tokens < 2:
            raise SenriError(f"pack_tokens is {self.pack_tokens}, but it must be at least 2.")

    @property
    def templates(self) -> PairTemplates:
        """The templates of a CSV."""
        return PairTemplates(self.first, self.second, self.forward, self.backward)


@dataclass(frozen=True)
class EncodedSentence:
    """The tokens of a sentence by itself, and which of them are its completion.

    Args:
        ids: the sentence's tokens.
        begin: index of the completion's first token; at least 1.
        end: index after its last.
        sentence: what was encoded.
    """

    ids: list[int]
    begin: int
    end: int
    sentence: PairSentence


def reversal_units(subject: Subject, settings: ReversalSettings) -> list[Unit]:
    """Return a unit for every packed block (direction, right or wrong pairs) and for every group of exact matches.

    Raises:
        SenriError: no data, data of another format, fewer pairs than asked for, or a sentence longer than a block.
    """
    between = separator_tokens(settings.separator, subject.tokenizer)
    units = []
    for direction, sentences in _directions(settings):
        order = list(sentences)
        random.Random(f"{settings.seed}-{direction}").shuffle(order)
        right = [encode_sentence(sentence, subject.tokenizer) for sentence in order]
        wrong = [encode_sentence(sentence, subject.tokenizer) for sentence in wrong_pairs(order)]
        for number, block in enumerate(_blocks(right, wrong, len(between), settings.pack_tokens)):
            for pairing, encoded in ((RIGHT, right), (WRONG, wrong)):
                members = [encoded[index] for index in block]
                size = sum(len(between) + len(one.ids) for one in members)
                run = partial(_score_block, subject, between, members, direction, pairing)
                units.append(Unit(f"{direction}/{pairing}/{number}", size, run))
        for start in range(0, len(right), _EXACT_GROUP):
            group = right[start : start + _EXACT_GROUP]
            exact = partial(_match_group, subject, group, direction)
            units.append(Unit(f"{direction}/{EXACT}/{start}", sum(one.end - 1 for one in group), exact))
    return units


def encode_sentence(sentence: PairSentence, tokenizer: Any) -> EncodedSentence:
    """Tokenise a sentence as a whole and find its completion there.

    A token that spans a border of the completion is part of it.
    """
    ids = tokens_of(sentence.text, tokenizer)
    begin = _common_start(ids, tokens_of(sentence.prompt, tokenizer))
    after = tokens_of(sentence.ending, tokenizer) if sentence.ending else []
    end = len(ids) - _common_start(ids[::-1], after[::-1])
    # A first token has nothing before it that could predict it.
    return EncodedSentence(ids, max(begin, 1), max(end, begin + 1), sentence)


def wrong_pairs(sentences: Sequence[PairSentence]) -> list[PairSentence]:
    """Give every sentence the completion of the next one of its frame that tells of another pair.

    The result tells of both pairs, so that packing can keep it away from either.

    Raises:
        SenriError: a sentence without any other to exchange with.
    """
    frames: dict[str, list[PairSentence]] = {}
    for sentence in sentences:
        frames.setdefault(sentence.frame, []).append(sentence)
    places = {id(sentence): place for group in frames.values() for place, sentence in enumerate(group)}
    exchanged = []
    for sentence in sentences:
        group, place = frames[sentence.frame], places[id(sentence)]
        others = (group[(place + step) % len(group)] for step in range(1, len(group)))
        other = next((one for one in others if not one.about & sentence.about and _differ(one, sentence)), None)
        if other is None:
            raise SenriError(
                f"the pair of {sentence.prompt!r} has no other one to be exchanged with: name data with more pairs."
            )
        exchanged.append(replace(sentence, completion=other.completion, about=sentence.about | other.about))
    return exchanged


def _directions(settings: ReversalSettings) -> Iterator[tuple[str, list[PairSentence]]]:
    if settings.data is None:
        raise SenriError(
            "data is not set, but reversal needs pairs: name a CSV, or the folder june_version_7921032488 of "
            "github.com/lukasberglund/reversal_curse."
        )
    pairs = read_pairs(settings.data, settings.templates)
    known = distinct(pairs.forward)
    if settings.pairs != "all":
        if settings.pairs > len(known):
            raise SenriError(f"pairs is {settings.pairs}, but {settings.data!r} holds {len(known)}: ask for fewer.")
        known = random.Random(f"{settings.seed}-pairs").sample(known, settings.pairs)
    kept = {*known}
    yield FORWARD, [sentence for sentence in pairs.forward if sentence.about in kept]
    yield BACKWARD, [sentence for sentence in pairs.backward if sentence.about in kept]


def _differ(first: PairSentence, second: PairSentence) -> bool:
    return first.completion.casefold() != second.completion.casefold()


def _blocks(
    right: Sequence[EncodedSentence], wrong: Sequence[EncodedSentence], between: int, pack_tokens: int
) -> list[list[int]]:
    """Share sentences out over blocks, right and wrong ones alike, so that both have as much before them.

    Returns:
        Indices of the sentences, block by block; each is a separator, a sentence, a separator, a sentence and so on.
    """
    sizes = [between + max(len(one.ids), len(other.ids)) for one, other in zip(right, wrong, strict=True)]
    # A wrong sentence is about both of its pairs.
    return pack_apart(sizes, [one.sentence.about for one in wrong], pack_tokens)


@torch.no_grad()
def _score_block(
    subject: Subject,
    between: list[int],
    block: Sequence[EncodedSentence],
    direction: str,
    pairing: str,
    scratch: Scratch,
) -> dict[str, Any]:
    """Read a block in one forward pass and add up its sentences by kind."""
    ids: list[int] = []
    starts = []
    for one in block:
        ids += between
        starts.append(len(ids))
        ids += one.ids
    logits = subject.reader().logits(torch.tensor([ids]))[0]
    targets = torch.tensor(ids[1:], device=logits.device)
    pieces = zip(logits[:-1].split(_LOSS_POSITIONS), targets.split(_LOSS_POSITIONS), strict=True)
    losses = torch.cat([F.cross_entropy(piece.float(), wanted, reduction="none").double() for piece, wanted in pieces])
    kinds: dict[str, dict[str, float]] = {}
    for one, start in zip(block, starts, strict=True):
        # The loss at index i is that of token i + 1.
        own = losses[start - 1 : start - 1 + len(one.ids)]
        _add(
            kinds.setdefault(one.sentence.kind, {}),
            sentences=1,
            nats=float(own[one.begin : one.end].sum()),
            tokens=one.end - one.begin,
            sentence_nats=float(own.sum()),
            sentence_tokens=len(one.ids),
        )
    scratch.advance(len(ids))
    return {"direction": direction, "pairing": pairing, "kinds": kinds, "tokens": len(ids), "reads": 1}


def _match_group(
    subject: Subject, group: Sequence[EncodedSentence], direction: str, scratch: Scratch
) -> dict[str, Any]:
    """Count the sentences whose completion greedy decoding gives after the prompt alone."""
    kinds: dict[str, dict[str, float]] = {}
    read = 0
    for one in group:
        pair = EncodedPair(one.ids[: one.begin], one.ids[one.begin : one.end])
        score = score_after(subject.reader(), pair)
        _add(kinds.setdefault(one.sentence.kind, {}), sentences=1, matches=int(score.is_greedy))
        scratch.advance(one.end - 1)
        read += one.end - 1
    return {"direction": direction, "pairing": EXACT, "kinds": kinds, "tokens": read, "reads": len(group)}


def _add(sums: dict[str, float], **values: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value


def _common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences share at their start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
