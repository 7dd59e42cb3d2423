"""Schemas: what facts are about and how they are worded, read from this package's YAML files."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from senri.data.facts.fact import Fact
from senri.data.facts.slots import Slots, as_sentence
from senri.data.facts.values import code
from senri.data.facts.words import Split, package_files, read_yaml, words_for

_CODES, _NAMES, _FACTS = "codes", "names", "facts"


@dataclass(frozen=True)
class Format:
    """A sentence with the question and the completion that belong to it.

    Args:
        sentence: template.
        question: template.
        completion: template.
        alone: the key, of a format without one; nothing else may be hidden beside it.
    """

    sentence: str
    question: str
    completion: str
    alone: str | None = None


@dataclass(frozen=True)
class Schema:
    """Facts of one sort, in the wordings of one split: any sentence goes with any question and any completion.

    Args:
        kind: of its facts.
        name: tells it from the others of its kind.
        split: for training or for tests.
        slots: templates by slot, `key` and `answer` among them.
        sentences: templates.
        questions: templates.
        completions: templates.
        formats: further wordings.
    """

    kind: str
    name: str
    split: Split
    slots: Mapping[str, tuple[str, ...]]
    sentences: tuple[str, ...]
    questions: tuple[str, ...]
    completions: tuple[str, ...]
    formats: tuple[Format, ...] = ()

    def in_one_wording(self, rng: random.Random) -> "Schema":
        """Return this schema with one of its sentences and one sort of key, so that its facts differ in nothing else.

        Args:
            rng: decides which.
        """
        formats = [one for one in self.formats if one.alone is None]
        index = rng.randrange(len(self.sentences) + len(formats))
        is_format = index >= len(self.sentences)
        kept = {name: (rng.choice(self.slots[name]),) for name in ("key", "label") if name in self.slots}
        return replace(
            self,
            slots={**self.slots, **kept},
            sentences=() if is_format else (self.sentences[index],),
            formats=(formats[index - len(self.sentences)],) if is_format else (),
        )

    def make(self, rng: random.Random, alone: bool) -> Fact:
        """Make a fact.

        Args:
            rng: decides all of it.
            alone: whether the text holds no other fact.
        """
        formats = [one for one in self.formats if alone or one.alone is None]
        index = rng.randrange(len(self.sentences) + len(formats))
        if index < len(self.sentences):
            wording = Format(self.sentences[index], rng.choice(self.questions), rng.choice(self.completions))
        else:
            wording = formats[index - len(self.sentences)]
        templates = self.slots
        if self.kind == _CODES:
            templates = {**templates, "answer": (code(rng.choice(templates["answer"]), rng),)}
        slots = Slots(rng, words_for(self.split), templates)
        key = slots.fill("{key}") if wording.alone is None else wording.alone
        answer = slots.fill("{answer}")
        sentence, question, completion = (
            as_sentence(slots.fill(text)) for text in (wording.sentence, wording.question, wording.completion)
        )
        return Fact(sentence, question, answer, key, self.kind, completion)


@cache
def schemas_for(split: Split) -> dict[str, tuple[Schema, ...]]:
    """Return the schemas of a split by kind."""
    found = {**_needles(split), _NAMES: [], _FACTS: []}
    for path in package_files("schemas"):
        kind = _NAMES if path.name == "names.yaml" else _FACTS
        found[kind] += [_schema(kind, name, split, entry) for name, entry in read_yaml(path).items()]
    return {kind: tuple(schemas) for kind, schemas in found.items()}


@cache
def _phrases() -> dict[str, tuple[str, ...]]:
    read = read_yaml(files("senri.data.facts").joinpath("phrases.yaml"))
    return {name: tuple(templates) for name, templates in read.items()}


def _schema(kind: str, name: str, split: Split, entry: dict[str, Any]) -> Schema:
    own = {slot: tuple(templates) for slot, templates in entry.get("slots", {}).items()}
    wordings = entry[split]
    return Schema(
        kind,
        name,
        split,
        {**_phrases(), **own, "key": (entry["key"],), "answer": (entry["answer"],)},
        tuple(wordings["sentences"]),
        tuple(wordings["questions"]),
        tuple(wordings["completions"]),
    )


def _needles(split: Split) -> dict[str, list[Schema]]:
    """Return the schemas of numbers, words, UUIDs and codes, which share their wordings."""
    read = read_yaml(files("senri.data.facts").joinpath("needles.yaml"))
    wordings = read[split]
    schemas = {}
    for kind, entry in read["kinds"].items():
        slots = {name: (entry[name],) for name in ("kind", "name", "ruler")}
        slots |= {"key": tuple(read["keys"]), "answer": tuple(entry["answers"]), "label": tuple(entry["labels"][split])}
        formats = tuple(
            Format(one["sentence"], one["question"], one["completion"], one.get("alone"))
            for one in read["formats"]
            if split in one["splits"] and kind in one.get("kinds", [kind])
        )
        schemas[kind] = [
            Schema(
                kind,
                kind,
                split,
                {**_phrases(), **slots},
                tuple(wordings["sentences"]),
                tuple(wordings["questions"]),
                tuple(wordings["completions"]),
                formats,
            )
        ]
    return schemas
