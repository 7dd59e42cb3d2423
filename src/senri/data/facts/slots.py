"""Templates and their slots: `{town}` is a word of a list, `{a animal}` has its article, `{2-99}` is a number."""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache

from senri.data.facts.values import VALUES

_FIELD = re.compile(r"\{(a )?([\w-]+)\}")
_RANGE = re.compile(r"(\d+)-(\d+)")
_PRONOUNS = {"he": ("she", "he"), "his": ("her", "his"), "him": ("her", "him")}
# Words that are written with a vowel and spoken without one, and the other way round.
_CONSONANT_SOUND = re.compile(r"(uni|use|usu|uti|uuid|ukulele|euro|eu[cp]|one\b|ewe)", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(hour|honest|honour|heir|8|11\b|18\b|x-)", re.IGNORECASE)


def with_article(noun: str) -> str:
    """Return a noun behind "a" or "an", as it is spoken."""
    vowel = _VOWEL_SOUND.match(noun) or (noun[0].lower() in "aeiou" and not _CONSONANT_SOUND.match(noun))
    return f"{'an' if vowel else 'a'} {noun}"


def as_sentence(text: str) -> str:
    """Return a text with a capital letter in front; a made-up word, such as silver-otter, stays as it is."""
    return text if "-" in text.split(maxsplit=1)[0] else text[:1].upper() + text[1:]


class Slots:
    """The slots of one fact. What is drawn for a slot stays, so that its sentence, question and answer agree.

    A slot is, in this order: one of the fact's own templates, a pronoun for `first`, a value (`VALUES`), a word of a
    list. A digit behind its name (`{town2}`) asks for another one than `{town}`; a capital letter (`{Town}`) for
    capital letters.

    Args:
        rng: decides what is drawn.
        words: lists of words by name.
        templates: by slot; of several one is drawn.
    """

    def __init__(
        self, rng: random.Random, words: Mapping[str, Sequence[str]], templates: Mapping[str, Sequence[str]]
    ) -> None:
        self._rng, self._words, self._templates = rng, words, templates
        self._drawn: dict[str, str] = {}
        self._used: set[tuple[str, str]] = set()

    def fill(self, template: str) -> str:
        """Return the template with its slots filled.

        Raises:
            KeyError: there is no such slot.
        """
        texts = []
        for text, article, name in _parts(template):
            texts.append(text)
            if name:
                texts.append(with_article(self._value(name)) if article else self._value(name))
        return "".join(texts)

    def _value(self, name: str) -> str:
        if name not in self._drawn:
            self._drawn[name] = self._draw(name)
        return self._drawn[name]

    def _draw(self, name: str) -> str:
        if name in self._templates:
            return self.fill(self._rng.choice(self._templates[name]))
        if name in _PRONOUNS:
            return _PRONOUNS[name][self._value("first") in self._words["man"]]
        if name[0].isupper():
            return " ".join(word[:1].upper() + word[1:] for word in self._value(name[0].lower() + name[1:]).split(" "))
        if limits := _RANGE.fullmatch(name):
            return str(self._rng.randint(int(limits[1]), int(limits[2])))
        stem = name.rstrip("0123456789")
        while (stem, (value := self._any(stem))) in self._used:
            pass
        self._used.add((stem, value))
        return value

    def _any(self, stem: str) -> str:
        if stem == "identifier":
            return f"{self._any('adjective')}-{self._any('noun')}"
        if stem in VALUES:
            return VALUES[stem](self._rng)
        return self._rng.choice(self._words[stem])


@cache
def _parts(template: str) -> tuple[tuple[str, bool, str], ...]:
    """Return the template's pieces: a text, whether an article follows, and the slot (or none) that does."""
    parts, place = [], 0
    for field in _FIELD.finditer(template):
        parts.append((template[place : field.start()], field[1] is not None, field[2]))
        place = field.end()
    return (*parts, (template[place:], False, ""))
