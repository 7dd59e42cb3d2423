"""Settings of recall training."""

from dataclasses import dataclass
from typing import Literal

from senri.errors import SenriError

PASSAGES = "passages"

Style = Literal["verbatim", "completion", "question", "chat"]


@dataclass
class Phase:
    """What is hidden and how it is asked for, while texts are not longer than so many tokens.

    Args:
        until: tokens; the next phase begins when texts reach it. None in the last phase.
        needles: numbers of facts that are hidden, one of them asked; drawn with equal chances.
        kinds: of facts, with their weights; `passages` are pieces of the text itself, asked for by their beginning.
        styles: ways to ask, with their weights.
        text_share: share of samples that hide nothing and go on with the text.
        kl_weight: of the divergence from the memory-less model in those, beside the loss of the answers.
        passed_at: share of right answer tokens from which on the length grows.
    """

    until: int | None
    needles: list[int]
    kinds: dict[str, float]
    styles: dict[Style, float]
    text_share: float
    kl_weight: float
    passed_at: float

    def __post_init__(self) -> None:
        for name in ("kinds", "styles"):
            weights = getattr(self, name)
            if not weights or min(weights.values()) < 0 or not sum(weights.values()):
                raise SenriError(
                    f"training.recall.phases: {name} is {weights}, but it must name some with weights above 0."
                )
        if not self.needles or min(self.needles) < 1:
            raise SenriError(f"training.recall.phases: needles is {self.needles}, but it must hold numbers from 1 on.")
        if self.kl_weight < 0:
            raise SenriError(f"training.recall.phases: kl_weight is {self.kl_weight}, but it must be 0 or above.")
        for name in ("text_share", "passed_at"):
            if not 0 <= getattr(self, name) < 1:
                raise SenriError(
                    f"training.recall.phases: {name} is {getattr(self, name)}, but it must be from 0 to below 1."
                )


@dataclass
class ValuesConfig:
    """Settings of the loss `values`, which teaches a memory to say what it found.

    Args:
        tokens: of a stretch of text.
        interference: largest share of another token's value in what is found.
        solve_batches: batches from which the start is solved.
        solve_context: tokens at the beginning of a stretch that say too little to be found by.
        ridge: of that least squares.
        loudness: root mean square of what the solved projection adds, as a share of that of the layer's states.
    """

    tokens: int
    interference: float
    solve_batches: int
    solve_context: int
    ridge: float
    loudness: float

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("solve_batches", 1), ("solve_context", 0), ("interference", 0)):
            if getattr(self, name) < least:
                raise SenriError(
                    f"training.recall.values.{name} is {getattr(self, name)}, but it must be at least {least}."
                )
        if self.solve_context >= self.tokens:
            raise SenriError(
                f"training.recall.values.solve_context is {self.solve_context}, but a stretch has {self.tokens} tokens."
            )
        for name in ("ridge", "loudness"):
            if getattr(self, name) <= 0:
                raise SenriError(f"training.recall.values.{name} is {getattr(self, name)}, but it must be above 0.")


@dataclass
class FindingConfig:
    """Settings of the loss `finding`, which teaches queries to meet their keys, and what is worth keeping.

    Args:
        facts: that are made, kept with the states of the frozen layers.
        group: facts that may stand in one text together.
        alike_share: of the groups whose facts only their keys tell apart.
        kinds: of facts, with their weights.
        styles: ways to ask.
        asked: ways in which each fact is asked for, drawn from these.
        hidden: numbers of facts in a text; drawn with equal chances.
        tokens_per_fact: a text has no more facts than one in so many tokens.
        questions: most of them about one text.
        texts: pieces of plain text that go on, kept beside the questions.
        text_questions: so many of them beside the questions of a text; they teach the read strength to be small.
        passage_areas: stretches of the text whose passages are asked for by their beginnings.
        passage_width: tokens of such a stretch.
        passages: in each.
        passages_until: tokens; longer texts have no passages: of them not everything can be kept.
        first_length: tokens of a text at the start.
        longest: tokens that it grows to.
        growth: factor at each step.
        sharpness: of the pointer: factor of cosines in its softmax.
    """

    facts: int
    group: int
    alike_share: float
    kinds: dict[str, float]
    styles: list[Style]
    asked: int
    hidden: list[int]
    tokens_per_fact: int
    questions: int
    texts: int
    text_questions: int
    passage_areas: int
    passage_width: int
    passages: int
    passages_until: int
    first_length: int
    longest: int
    growth: float
    sharpness: float

    def __post_init__(self) -> None:
        counts = (
            "facts",
            "group",
            "asked",
            "tokens_per_fact",
            "questions",
            "passage_width",
            "passages",
            "first_length",
        )
        for name, least in (*((name, 1) for name in counts), *((name, 0) for name in ("texts", "passage_areas"))):
            if getattr(self, name) < least:
                raise SenriError(
                    f"training.recall.finding.{name} is {getattr(self, name)}, but it must be at least {least}."
                )
        for name in ("kinds", "styles", "hidden"):
            if not getattr(self, name):
                raise SenriError(f"training.recall.finding.{name} is empty: name at least one.")
        if min(self.hidden) < 1:
            raise SenriError(f"training.recall.finding.hidden is {self.hidden}, but it must hold numbers from 1 on.")
        if not 0 <= self.alike_share <= 1:
            raise SenriError(f"training.recall.finding.alike_share is {self.alike_share}, but it must be from 0 to 1.")
        if self.longest < self.first_length:
            raise SenriError(
                f"training.recall.finding.longest is {self.longest}, less than first_length {self.first_length}."
            )
        for name, bound in (("growth", 1), ("sharpness", 0)):
            if getattr(self, name) <= bound:
                raise SenriError(
                    f"training.recall.finding.{name} is {getattr(self, name)}, but it must be above {bound}."
                )


@dataclass
class RecallConfig:
    """What `training.recall` holds.

    Args:
        first_length: tokens of the text before the question at the start.
        longest: tokens that it grows to.
        growth: factor when enough answers are right.
        smoothing: of the share of right answer tokens, from step to step.
        shortest_share: lengths are drawn from this share of the current one up to all of it.
        tokens_per_batch: long texts come in smaller batches, of about so many tokens; two samples at least.
        phases: what is hidden and asked, by length: easy things first, because nothing is learnt from many at once
            before the memory finds the first.
        neighbourhood: tokens before a fact that its states see.
        question_context: tokens of the text that stand before the question.
        text_tokens: how far samples that hide nothing go on with the text.
        passage_cue: tokens of a passage that ask for the rest of it.
        passage_tokens: most tokens of that rest.
        values: of the loss values.
        finding: of the loss finding.
    """

    first_length: int
    longest: int
    growth: float
    smoothing: float
    shortest_share: float
    tokens_per_batch: int
    phases: list[Phase]
    neighbourhood: int
    question_context: int
    text_tokens: int
    passage_cue: int
    passage_tokens: int
    values: ValuesConfig
    finding: FindingConfig

    def __post_init__(self) -> None:
        for name in (
            "first_length",
            "tokens_per_batch",
            "neighbourhood",
            "question_context",
            "text_tokens",
            "passage_cue",
            "passage_tokens",
        ):
            if getattr(self, name) < 1:
                raise SenriError(f"training.recall.{name} is {getattr(self, name)}, but it must be at least 1.")
        ends = [phase.until for phase in self.phases]
        rising = sorted({end for end in ends if end is not None})
        if ends != [*rising, None]:
            raise SenriError(
                f"training.recall.phases end at {ends}, but each must end later than the one before, the last at null."
            )
        if self.first_length <= self.passage_cue:
            raise SenriError(
                f"training.recall.first_length is {self.first_length}, no longer than passage_cue {self.passage_cue}: "
                f"raise it."
            )
        if self.longest < self.first_length:
            raise SenriError(
                f"training.recall.longest is {self.longest}, less than first_length {self.first_length}: raise it."
            )
        if self.growth <= 1:
            raise SenriError(f"training.recall.growth is {self.growth}, but it must be above 1.")
        for name in ("smoothing", "shortest_share"):
            if not 0 <= getattr(self, name) < 1:
                raise SenriError(f"training.recall.{name} is {getattr(self, name)}, but it must be from 0 to below 1.")

    def phase_at(self, length: float) -> Phase:
        """Return the phase of texts of so many tokens."""
        return next(phase for phase in self.phases if phase.until is None or length < phase.until)

    @property
    def kinds(self) -> list[str]:
        """All kinds of facts that are asked for at any time."""
        return list(dict.fromkeys(kind for phase in self.phases for kind in phase.kinds))
