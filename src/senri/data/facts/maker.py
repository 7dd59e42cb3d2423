"""Makes the facts of a sample: as many as are wanted, no two about the same thing and no two with the same answer."""

import random
from collections.abc import Iterator, Sequence
from typing import get_args

from senri.data.facts.fact import Fact
from senri.data.facts.schemas import Schema, schemas_for
from senri.data.facts.words import Split
from senri.errors import SenriError, nearest

KINDS = ("numbers", "words", "uuids", "codes", "names", "facts")
"""What facts there are: values of a key, a person in a role, and ordinary sentences."""

# So many facts in a row that could not be used mean that a schema, or all of them, has no more to give.
_SCHEMA_TRIES, _TRIES = 50, 2000


class FactMaker:
    """Makes facts, in the wordings and with the names of one split.

    Args:
        split: nothing that the other one uses is used, but for the two formats of Senri's own needle test.
        kinds: of `KINDS`, those to choose from; a kind that is named twice is chosen twice as often.

    Raises:
        SenriError: an unknown split or kind, or no kind.
    """

    def __init__(self, split: Split, kinds: Sequence[str]) -> None:
        if split not in get_args(Split):
            raise SenriError(f"there is no split {split!r} of facts: {nearest(split, get_args(Split))}")
        if isinstance(kinds, str):
            raise SenriError(f"kinds is {kinds!r}, but a list of kinds is needed: write [{kinds!r}].")
        if not kinds:
            raise SenriError(f"kinds is empty: name at least one of {', '.join(KINDS)}.")
        for kind in kinds:
            if kind not in KINDS:
                raise SenriError(f"there is no kind {kind!r} of facts: {nearest(kind, KINDS)}")
        schemas = schemas_for(split)
        self._choices = [schemas[kind] for kind in kinds]
        self._kinds = [*kinds]

    def make(
        self, rng: random.Random, count: int, *, same_kind: bool = False, same_wording: bool = False
    ) -> list[Fact]:
        """Make the facts of one sample.

        Their keys and their answers are distinct, and no key is a part of another one ("Marta" beside "Marta Dunn"), so
        that a question has one answer.

        Args:
            rng: decides all of it.
            count: how many.
            same_kind: all are of one kind, and names or facts are of one schema as long as it has more to give, so that
                only the key tells them apart; else each is of a kind of its own.
            same_wording: all of one kind are said in one sentence, as long as it has more to give.

        Raises:
            SenriError: `count` is below 1, or more than the kinds have distinct keys and answers for.
        """
        if count < 1:
            raise SenriError(f"count is {count}, but a sample holds at least 1 fact.")
        facts: list[Fact] = []
        keys, answers = _Keys(), set[str]()
        schemas = self._same_kind(rng) if same_kind else self._mixed(rng)
        if same_wording:
            schemas = (schema.in_one_wording(rng) for schema in schemas)
        schema, failures = next(schemas), 0
        while len(facts) < count:
            fact = schema.make(rng, alone=count == 1)
            answer = fact.answer.casefold()
            if answer not in answers and keys.add(fact.key):
                answers.add(answer)
                facts.append(fact)
                failures = 0
            else:
                failures += 1
                if failures > _TRIES:
                    raise SenriError(
                        f"only {len(facts)} of {count} facts of the kinds {', '.join(self._kinds)} have distinct keys "
                        f"and answers: make fewer, or name more kinds."
                    )
            if not same_kind or failures and failures % _SCHEMA_TRIES == 0:
                schema = next(schemas)
        return facts

    def _mixed(self, rng: random.Random) -> Iterator[Schema]:
        while True:
            yield rng.choice(rng.choice(self._choices))

    def _same_kind(self, rng: random.Random) -> Iterator[Schema]:
        of_kind = rng.choice(self._choices)
        while True:
            yield rng.choice(of_kind)


class _Keys:
    """The keys in use."""

    def __init__(self) -> None:
        self._whole: set[str] = set()
        self._parts: set[str] = set()

    def add(self, key: str) -> bool:
        """Take a key in, unless it is a run of words of one in use or the other way round; return whether it was."""
        words = key.casefold().split()
        ends = range(len(words) + 1)
        parts = {" ".join(words[start:end]) for end in ends for start in range(end)}
        whole = " ".join(words)
        if whole in self._parts or not parts.isdisjoint(self._whole):
            return False
        self._whole.add(whole)
        self._parts |= parts
        return True
