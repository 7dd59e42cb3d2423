"""Tables, picture and sentences of the reversal test: both directions, right and wrong pairs, exact match."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from senri.evaluation.charts import PALETTE
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.reversal import BACKWARD, EXACT, FORWARD, RIGHT, WRONG, ReversalSettings
from senri.evaluation.subject import Subject

_COLUMNS = (
    "direction",
    "completes",
    "sentences",
    "perplexity",
    "wrong pairs",
    "ratio",
    "whole sentence",
    "exact match",
)
_UNKNOWN_BELOW = 1.1
"""A ratio of wrong to right pairs that a model without any knowledge of them may have by chance."""


@dataclass(frozen=True)
class Direction:
    """What was measured in one direction.

    Args:
        sentences: how many.
        perplexity: of the completions after their prompts, per token.
        wrong_perplexity: of another pair's completions after the same prompts.
        sentence_perplexity: of the whole sentences.
        wrong_sentence_perplexity: of the whole sentences with another pair's completions.
        exact_match: share of the completions that greedy decoding gives.
    """

    sentences: int
    perplexity: float
    wrong_perplexity: float
    sentence_perplexity: float
    wrong_sentence_perplexity: float
    exact_match: float

    @property
    def ratio(self) -> float:
        """Return perplexity of wrong pairs over that of right ones; 1 where the model knows nothing of them."""
        return self.wrong_perplexity / self.perplexity if self.perplexity else math.nan


def reversal_outcome(subject: Subject, settings: ReversalSettings, results: list[dict[str, Any]]) -> Outcome:
    """Add up units by direction and by what the completions are, and compare the directions."""
    kinds = {
        direction: sorted({kind for one in results if one["direction"] == direction for kind in one["kinds"]})
        for direction in (FORWARD, BACKWARD)
    }
    whole = {direction: _direction(results, direction, of_kinds) for direction, of_kinds in kinds.items()}
    parts = {
        direction: {kind: _direction(results, direction, [kind]) for kind in of_kinds}
        for direction, of_kinds in kinds.items()
    }
    forward, backward = whole[FORWARD], whole[BACKWARD]
    gap = backward.perplexity - forward.perplexity
    sentence_gap = backward.sentence_perplexity - forward.sentence_perplexity
    return Outcome(
        headline=(
            f"perplexity {_number(forward.perplexity)} forward, {_number(backward.perplexity)} backward; "
            f"exact {forward.exact_match:.0%}, {backward.exact_match:.0%}"
        ),
        results={
            "directions": {direction: _plain(found) for direction, found in whole.items()},
            "completions": {
                direction: {kind: _plain(found) for kind, found in by_kind.items()}
                for direction, by_kind in parts.items()
            },
            "gap": gap,
            "sentence_gap": sentence_gap,
        },
        counts={
            "samples": forward.sentences + backward.sentences,
            "tokens": sum(one["tokens"] for one in results),
            "reads": sum(one["reads"] for one in results),
        },
        summary=[
            f"Completions: perplexity {_number(forward.perplexity)} in the order taught, "
            f"{_number(backward.perplexity)} in the other: a gap of {_number(gap)}; whole sentences: "
            f"{_number(sentence_gap)}.",
            f"Wrong pairs are {forward.ratio:.2f} times as perplexing as right ones forward, {backward.ratio:.2f} "
            "times backward (1: nothing is known of the pairs).",
            f"Exact match: {forward.exact_match:.1%} forward, {backward.exact_match:.1%} backward.",
        ],
        warnings=_warnings(kinds, forward),
        tables=[_table(whole, parts)],
        pictures=[
            Picture(
                "reversal",
                _figure(whole),
                "Perplexity of completions (lower is better) for right and wrong pairs, and exact match, in the order "
                "taught and in the other.",
            )
        ],
    )


def _direction(results: list[dict[str, Any]], direction: str, kinds: Sequence[str]) -> Direction:
    def total(pairing: str, field: str) -> float:
        chosen = (one for one in results if one["direction"] == direction and one["pairing"] == pairing)
        return float(sum(one["kinds"][kind][field] for one in chosen for kind in kinds if kind in one["kinds"]))

    def perplexity(pairing: str, prefix: str = "") -> float:
        try:
            return math.exp(total(pairing, f"{prefix}nats") / total(pairing, f"{prefix}tokens"))
        except OverflowError:
            return math.inf

    return Direction(
        sentences=int(total(RIGHT, "sentences")),
        perplexity=perplexity(RIGHT),
        wrong_perplexity=perplexity(WRONG),
        sentence_perplexity=perplexity(RIGHT, "sentence_"),
        wrong_sentence_perplexity=perplexity(WRONG, "sentence_"),
        exact_match=total(EXACT, "matches") / total(EXACT, "sentences"),
    )


def _plain(found: Direction) -> dict[str, float]:
    return {
        "sentences": found.sentences,
        "perplexity": found.perplexity,
        "wrong_perplexity": found.wrong_perplexity,
        "ratio": found.ratio,
        "sentence_perplexity": found.sentence_perplexity,
        "wrong_sentence_perplexity": found.wrong_sentence_perplexity,
        "exact_match": found.exact_match,
    }


def _table(whole: dict[str, Direction], parts: dict[str, dict[str, Direction]]) -> Table:
    rows = []
    for direction, found in whole.items():
        by_kind = parts[direction]
        rows += [_row(direction, "all" if len(by_kind) > 1 else next(iter(by_kind)), found)]
        rows += [_row(direction, kind, part) for kind, part in by_kind.items() if len(by_kind) > 1]
    return Table(
        "Perplexity and exact match",
        _COLUMNS,
        rows,
        "Perplexity: of the completion's tokens after the prompt. Wrong pairs: the same prompts with another pair's "
        "completion; ratio: wrong over right, 1 for a model that knows nothing of the pairs. Sentences of one "
        "direction are shuffled and packed without padding; no block tells twice of the same pair. Exact match: each "
        "prompt by itself, greedy.",
    )


def _row(direction: str, kind: str, found: Direction) -> list[str]:
    return [
        direction,
        kind,
        f"{found.sentences:,}",
        _number(found.perplexity),
        _number(found.wrong_perplexity),
        f"{found.ratio:.2f}",
        _number(found.sentence_perplexity),
        f"{found.exact_match:.1%}",
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.3g}"


def _warnings(kinds: dict[str, list[str]], forward: Direction) -> list[str]:
    found = []
    if kinds[FORWARD] != kinds[BACKWARD]:
        found.append(
            f"forward sentences complete {' and '.join(kinds[FORWARD])}, backward ones "
            f"{' and '.join(kinds[BACKWARD])}: perplexities of different things, so compare the ratios to wrong pairs "
            "rather than the gap."
        )
    if not forward.ratio >= _UNKNOWN_BELOW:
        found.append(
            f"even in the order taught, wrong pairs are only {forward.ratio:.2f} times as perplexing as right ones: "
            "the model has not learnt these pairs, so the gap says nothing about reversal."
        )
    return found


def _figure(whole: dict[str, Direction]) -> Figure:
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(whole))
    for shift, label, colour, values in (
        (-0.2, RIGHT, PALETTE[0], [found.perplexity for found in whole.values()]),
        (0.2, WRONG, PALETTE[4], [found.wrong_perplexity for found in whole.values()]),
    ):
        drawn = [value if math.isfinite(value) else math.nan for value in values]
        bars = left.bar([place + shift for place in places], drawn, 0.38, color=colour, label=label)
        left.bar_label(bars, [_number(value) for value in values], padding=2)
    left.set(yscale="log", ylabel="perplexity of the completion")
    left.margins(y=0.15)
    # Above the bars, where it covers none of them.
    left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, columnspacing=1)
    matches = [100 * found.exact_match for found in whole.values()]
    bars = right.bar(places, matches, 0.5, color=PALETTE[2])
    right.bar_label(bars, [f"{value:.3g}%" for value in matches], padding=2)
    right.set(ylim=(0, 110), ylabel="exact match (%)")
    for panel in (left, right):
        panel.set_xticks(places, list(whole))
        panel.spines[["top", "right"]].set_visible(False)
    return figure
