"""Settings of what recall training hides in a text and asks for."""

import random
from dataclasses import dataclass, fields
from typing import Literal

from senri.data.facts import Style as FactStyle
from senri.errors import SenriError

PASSAGES = "passages"

Style = Literal[FactStyle, "chat"]


@dataclass
class HaystackConfig:
    """What is hidden in a text and asked for.

    Args:
        tokens: of the rows below and, behind them, of rows drawn from the training text, that haystacks are cut from;
            the frozen layers' states of all of them are kept.
        noise: of the parts of `max_length` tokens that haystacks are cut from, so many repeat a few short sentences.
        contents: so many are tables of contents, made of words of the text and page numbers,
        contents_entries: with at most so many entries each;
        code: so many are code,
        reference: so many the Python language reference, which is full of lists and tables,
        beginnings: and so many the beginnings of documents: where text looks like facts, as on title pages and in
            tables of contents, a memory must learn to be silent.
        beginning_tokens: of each of these.
        noise_sentences: how many sentences a part of noise repeats.
        noise_characters: of the longest of them.
        facts: that are made, kept with the states of the frozen layers.
        group: facts that may stand in one text together.
        alike_share: of the groups whose facts only their keys tell apart.
        same_wording_share: of those, whose facts are all said in one sentence.
        kinds: of facts, with their weights.
        styles: ways to ask, with their weights.
        asked: ways in which each fact is asked for, drawn from these.
        first_weight: an answer's first token counts so many times as much in the loss as each of the others.
        hidden: numbers of facts in a text; drawn with equal chances.
        tokens_per_fact: a text has no more facts than one in so many tokens.
        windows: stretches of text, of which facts, questions and plain texts each stand behind one,
        window_tokens: with so many tokens, in turn. Behind less than the model's window its first token is attended to
            by all others, and states are others; behind little they are others still. So most have more, as in use, and
            some have less, as where a text begins.
        neighbourhood: tokens of other text between such a stretch and a fact, the last of them the end of a sentence.
        aftermath: of the tokens behind that end, so many stand behind the fact with it: their states see it.
        questions: most of them about one text.
        question_context: tokens of plain text that stand before a question, in the loss finding.
        texts: pieces of plain text that go on, kept beside the questions.
        text_tokens: how far they go on.
        text_questions: so many of them beside the questions of a text; where they are, the memory learns to be silent.
        passage_areas: stretches of the text whose passages are asked for by their beginnings.
        passage_width: tokens of such a stretch.
        passages: in each.
        passages_until: tokens; longer texts have no passages: of them not everything can be kept.
        passage_cue: tokens of a passage that ask for the rest of it.
        passage_tokens: of that rest.
    """

    tokens: int
    noise: int
    contents: int
    contents_entries: int
    code: int
    reference: int
    beginnings: int
    beginning_tokens: int
    noise_sentences: int
    noise_characters: int
    facts: int
    group: int
    alike_share: float
    same_wording_share: float
    kinds: dict[str, float]
    styles: dict[Style, float]
    asked: int
    first_weight: float
    hidden: list[int]
    tokens_per_fact: int
    windows: int
    window_tokens: list[int]
    neighbourhood: int
    aftermath: int
    questions: int
    question_context: int
    texts: int
    text_tokens: int
    text_questions: int
    passage_areas: int
    passage_width: int
    passages: int
    passages_until: int
    passage_cue: int
    passage_tokens: int

    def __post_init__(self) -> None:
        may_be_zero = (
            "noise",
            "contents",
            "code",
            "reference",
            "beginnings",
            "texts",
            "text_questions",
            "passage_areas",
            "passages_until",
            "aftermath",
        )
        for name in (field.name for field in fields(self) if field.type is int):
            value, least = getattr(self, name), 0 if name in may_be_zero else 1
            if value < least:
                raise SenriError(f"training.recall.haystacks.{name} is {value}, but it must be at least {least}.")
        if not self.kinds or min(self.kinds.values()) < 0 or not sum(self.kinds.values()):
            raise SenriError(
                f"training.recall.haystacks: kinds is {self.kinds}, but it must name some with weights above 0."
            )
        if not self.styles or min(self.styles.values()) < 0 or not sum(self.styles.values()):
            raise SenriError(
                f"training.recall.haystacks: styles is {self.styles}, but it must name some with weights above 0."
            )
        if not self.hidden or min(self.hidden) < 1:
            raise SenriError(f"training.recall.haystacks.hidden is {self.hidden}, but it must hold numbers from 1 on.")
        if not self.window_tokens or min(self.window_tokens) < 1:
            raise SenriError(
                f"training.recall.haystacks.window_tokens is {self.window_tokens}, but it must hold numbers from 1 on."
            )
        if not 0 <= self.alike_share <= 1:
            raise SenriError(f"training.recall.haystacks.alike_share is {self.alike_share}, but it must be 0 to 1.")
        if not 0 <= self.same_wording_share <= 1:
            raise SenriError(
                f"training.recall.haystacks.same_wording_share is {self.same_wording_share}, but it must be 0 to 1."
            )
        if self.first_weight <= 0:
            raise SenriError(f"training.recall.haystacks.first_weight is {self.first_weight}, but it must be above 0.")
        if self.passage_width < self.passage_cue + self.passage_tokens:
            raise SenriError(
                f"training.recall.haystacks.passage_width is {self.passage_width}, but a passage has "
                f"{self.passage_cue + self.passage_tokens} tokens: raise it."
            )

    def draw_styles(self, rng: random.Random) -> list[Style]:
        """Return in which ways one fact is asked for: `asked` different ones, each the likelier the more it weighs.

        The largest of random numbers to the power of 1 / weight (Efraimidis & Spirakis 2006, algorithm A).
        """
        drawn = {style: rng.random() ** (1 / weight) for style, weight in self.styles.items() if weight}
        return sorted(drawn, key=lambda style: -drawn[style])[: self.asked]

    @property
    def kind_names(self) -> tuple[str, ...]:
        """Names of what is asked for, in the order of their numbers."""
        return (*self.kinds, PASSAGES)
