"""LAMBADA (OpenAI's version): is the last word of a passage the likeliest one; as lm-eval's `lambada_openai`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from senri.data.rows import hub_rows, read_rows
from senri.errors import SenriError
from senri.evaluation.charts import bar_figure
from senri.evaluation.loglikelihood import EncodedPair, encode_pair, score_after, score_pairs
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.reader import without_memory
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit

REPOSITORY = "EleutherAI/lambada_openai"


@dataclass
class LambadaSettings:
    """What the section `lambada` holds; `config/evaluation.yaml` says what each is.

    Raises:
        SenriError: a number out of range.
    """

    data: str | None
    samples: int | Literal["all"]
    batch_size: int
    samples_per_unit: int

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "samples_per_unit"):
            value = getattr(self, name)
            if value != "all" and value < 1:
                raise SenriError(f"{name} is {value}, but it must be at least 1.")


def lambada_units(subject: Subject, settings: LambadaSettings) -> list[Unit]:
    """Return units of so many passages, once for each way that the model can be run."""
    pairs = [_split(subject.tokenizer, text) for text in lambada_texts(settings)]
    if not subject.is_senri:
        pairs = [pair.within(subject.context) for pair in pairs]
    size = settings.samples_per_unit
    pieces = [(start, pairs[start : start + size]) for start in range(0, len(pairs), size)]
    return [
        Unit(f"{way}:{start}", len(piece), _scoring(subject, settings, way, piece))
        for way in _ways(subject)
        for start, piece in pieces
    ]


def lambada_outcome(subject: Subject, settings: LambadaSettings, results: list[dict[str, Any]]) -> Outcome:
    """Add the passages up: accuracy with its standard error, and perplexity of the last word."""
    found: dict[str, dict[str, Any]] = {}
    for way in _ways(subject):
        nats = [value for result in results if result["way"] == way for value in result["nats"]]
        hits = [value for result in results if result["way"] == way for value in result["is_greedy"]]
        accuracy = sum(hits) / len(hits)
        error = math.sqrt(accuracy * (1 - accuracy) / max(len(hits) - 1, 1))
        perplexity = math.exp(math.fsum(nats) / len(nats))
        found[way] = {"accuracy": accuracy, "accuracy_stderr": error, "perplexity": perplexity, "samples": len(nats)}
    table = Table(
        "LAMBADA: the last word of a passage",
        ("model", "accuracy", "standard error", "perplexity of the last word", "passages"),
        [
            [
                way,
                f"{one['accuracy']:.4f}",
                f"{one['accuracy_stderr']:.4f}",
                f"{one['perplexity']:.4f}",
                f"{one['samples']:,}",
            ]
            for way, one in found.items()
        ],
        "A word of several tokens counts as found when each token is the likeliest. Perplexity is that of whole words.",
    )
    figure = bar_figure(
        {"accuracy": {way: one["accuracy"] for way, one in found.items()}},
        {"perplexity of the last word": {way: one["perplexity"] for way, one in found.items()}},
    )
    return Outcome(
        headline=", ".join(
            f"{way} accuracy {one['accuracy']:.1%}, perplexity {one['perplexity']:.2f}" for way, one in found.items()
        ),
        results=found,
        counts={"samples": next(iter(found.values()))["samples"]},
        summary=[f"{next(iter(found.values()))['samples']:,} passages; computed as lm-eval's lambada_openai."],
        tables=[table],
        pictures=[Picture("lambada", figure, "Accuracy and perplexity of the last word.")],
    )


def lambada_texts(settings: LambadaSettings) -> list[str]:
    """Return the passages.

    Raises:
        SenriError: they cannot be read.
    """
    if settings.data is None:
        rows = hub_rows(REPOSITORY, "default", "test")
    else:
        rows = read_rows(Path(settings.data), ("text",))
    texts = [str(row["text"]) for row in rows]
    return texts if settings.samples == "all" else texts[: settings.samples]


def _ways(subject: Subject) -> list[str]:
    return ["memory on", "memory off"] if subject.is_senri else ["model"]


def _split(tokenizer: Any, text: str) -> EncodedPair:
    context, _, word = text.rpartition(" ")
    return encode_pair(tokenizer, context, f" {word}")


def _scoring(subject: Subject, settings: LambadaSettings, way: str, pairs: list[EncodedPair]) -> Any:
    def scores(scratch: Scratch) -> dict[int, Any]:
        # The longest first: what does not fit into the device's memory shows at once.
        order = sorted(range(len(pairs)), key=lambda index: -len(pairs[index].context))
        found = {}
        if subject.session is not None:
            for index in order:
                found[index] = score_after(subject.reader(), pairs[index])
                scratch.advance(1)
            return found
        for start in range(0, len(order), settings.batch_size):
            batch = order[start : start + settings.batch_size]
            found |= dict(zip(batch, score_pairs(subject.model, [pairs[index] for index in batch]), strict=True))
            scratch.advance(len(batch))
        return found

    def run(scratch: Scratch) -> dict[str, Any]:
        if way == "memory off":
            with without_memory(subject.model):
                found = scores(scratch)
        else:
            found = scores(scratch)
        in_order = [found[index] for index in range(len(pairs))]
        return {
            "way": way,
            "nats": [score.nats for score in in_order],
            "is_greedy": [score.is_greedy for score in in_order],
        }

    return run
