"""Settings of recall training."""

import math
import random
from dataclasses import dataclass

from senri.errors import SenriError
from senri.training.recall.haystack_config import HaystackConfig


@dataclass
class ValuesConfig:
    """Settings of the loss `values`, which teaches a memory to say what it found.

    Args:
        tokens: of a stretch of text that is said.
        context: tokens before it that its values are made behind.
        facts_share: of the stretches that are sentences of facts, whose words and names novels hardly have.
        interference: largest share of another token's value in what is found.
        faintest: what is found is as loud as a whole value or fainter, down to this share: a query that half meets
            its key reads half of it.
        solve_batches: batches from which the start is solved.
        solve_context: tokens at the beginning of a stretch that say too little to be found by.
        ridge: of that least squares.
        loudness: root mean square of what the solved projection adds, as a share of that of the layer's states.
    """

    tokens: int
    context: int
    facts_share: float
    interference: float
    faintest: float
    solve_batches: int
    solve_context: int
    ridge: float
    loudness: float

    def __post_init__(self) -> None:
        for name, least in (
            ("tokens", 2),
            ("context", 0),
            ("solve_batches", 1),
            ("solve_context", 0),
            ("interference", 0),
        ):
            if getattr(self, name) < least:
                raise SenriError(
                    f"training.recall.values.{name} is {getattr(self, name)}, but it must be at least {least}."
                )
        if not 0 <= self.facts_share <= 1:
            raise SenriError(f"training.recall.values.facts_share is {self.facts_share}, but it must be 0 to 1.")
        if not 0 < self.faintest <= 1:
            raise SenriError(
                f"training.recall.values.faintest is {self.faintest}, but it must be above 0 and at most 1."
            )
        if self.solve_context >= self.tokens:
            raise SenriError(
                f"training.recall.values.solve_context is {self.solve_context}, but a stretch has {self.tokens} tokens."
            )
        for name in ("ridge", "loudness"):
            if getattr(self, name) <= 0:
                raise SenriError(f"training.recall.values.{name} is {getattr(self, name)}, but it must be above 0.")


@dataclass
class WindowConfig:
    """What stands before a question when it is asked, in the losses `values` and `recall`.

    Args:
        shortest: tokens; every order of size from there to the longest has equal chances.
        longest: tokens.
    """

    shortest: int
    longest: int

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise SenriError(
                f"training.recall.window has {self.shortest} to {self.longest} tokens, but it needs at least 1, and "
                f"longest not below shortest."
            )

    def check_room(self, sliding_window: int | None) -> None:
        """Check that a model's window has room for what stands before a question; None is a model without a window.

        Raises:
            SenriError: it has not.
        """
        if sliding_window is not None and self.longest >= sliding_window:
            raise SenriError(
                f"training.recall.window.longest is {self.longest}, but the model's sliding window has "
                f"{sliding_window} tokens, the question's own among them: make it smaller."
            )

    def draw(self, rng: random.Random) -> int:
        """Return a length, in tokens."""
        return round(math.exp(rng.uniform(math.log(self.shortest), math.log(self.longest))))


@dataclass
class LengthsConfig:
    """How long texts are.

    Args:
        first: tokens at the first step.
        longest: tokens that they grow to.
        growth: factor at each step; 1 for none.
        shortest_share: each is drawn from this share of the current length up to all of it.
    """

    first: int
    longest: int
    growth: float
    shortest_share: float

    def __post_init__(self) -> None:
        if self.first < 1:
            raise SenriError(f"training.recall: lengths.first is {self.first}, but it must be at least 1.")
        if self.longest < self.first:
            raise SenriError(f"training.recall: lengths.longest is {self.longest}, less than first {self.first}.")
        if self.growth < 1:
            raise SenriError(f"training.recall: lengths.growth is {self.growth}, but it must be at least 1.")
        if not 0 < self.shortest_share <= 1:
            raise SenriError(
                f"training.recall: lengths.shortest_share is {self.shortest_share}, but it must be above 0 and up to 1."
            )

    def at(self, step: int) -> float:
        """Return the length at a step, in tokens."""
        steps = math.log(self.longest / self.first) / math.log(self.growth) if self.growth > 1 else math.inf
        return float(self.longest) if step >= steps else self.first * self.growth**step


@dataclass
class FindingConfig:
    """Settings of the loss `finding`, which teaches queries to meet their keys.

    Args:
        lengths: of its texts.
        sharpness: factor of cosines of queries with keys, and of reads with values, in the softmax.
        prior: power of what the model alone says that both are weighed by.
        times_longer: the haystack counts as up to so many times as long as it is, from 1 on, evenly by its logarithm.
        fainter: logits of the write strengths of facts are lowered by up to this much, evenly.
        text_weight: of plain text beside answers, where read strengths are learnt.
        hearing_text_weight: the same in a stage that trains these alone.
        meeting: weight of the loss that queries should be most like their own keys, beside what is read.
        meeting_first: so many steps at first learn this alone, without a memory, from texts with the most facts.
    """

    lengths: LengthsConfig
    sharpness: float
    prior: float
    times_longer: float
    fainter: float
    text_weight: float
    hearing_text_weight: float
    meeting: float
    meeting_first: int

    def __post_init__(self) -> None:
        if self.sharpness <= 0:
            raise SenriError(f"training.recall.finding.sharpness is {self.sharpness}, but it must be above 0.")
        if self.prior < 0:
            raise SenriError(f"training.recall.finding.prior is {self.prior}, but it must be 0 or above.")
        if self.times_longer < 1:
            raise SenriError(f"training.recall.finding.times_longer is {self.times_longer}, but it must be 1 or above.")
        if self.fainter < 0:
            raise SenriError(f"training.recall.finding.fainter is {self.fainter}, but it must be 0 or above.")
        for name in ("text_weight", "hearing_text_weight"):
            if getattr(self, name) < 0:
                raise SenriError(f"training.recall.finding.{name} is {getattr(self, name)}, but it must be 0 or above.")
        if self.meeting < 0:
            raise SenriError(f"training.recall.finding.meeting is {self.meeting}, but it must be 0 or above.")
        if self.meeting_first < 0:
            raise SenriError(
                f"training.recall.finding.meeting_first is {self.meeting_first}, but it must be 0 or above."
            )


@dataclass
class AnsweringConfig:
    """Settings of the loss `recall`, which teaches the whole memory to answer.

    Args:
        lengths: of its texts.
        text_tokens: of plain text that goes on behind the window.
        kl_weight: of the divergence from the memory-less model in it, beside the loss of the answers.
    """

    lengths: LengthsConfig
    text_tokens: int
    kl_weight: float

    def __post_init__(self) -> None:
        if self.text_tokens < 1:
            raise SenriError(f"training.recall.answering.text_tokens is {self.text_tokens}, but it must be at least 1.")
        if self.kl_weight < 0:
            raise SenriError(f"training.recall.answering.kl_weight is {self.kl_weight}, but it must be 0 or above.")


@dataclass
class RecallConfig:
    """What `training.recall` holds.

    Args:
        window: what stands before what is said.
        values: of the loss values.
        haystacks: what the losses finding and recall hide and ask for.
        finding: of the loss finding.
        answering: of the loss recall.
    """

    window: WindowConfig
    values: ValuesConfig
    haystacks: HaystackConfig
    finding: FindingConfig
    answering: AnsweringConfig
