"""Perplexity over documents, as a part of an evaluation: by stream with memory and without, or by sliding window."""

import math
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from senri.data import Document, TokenStream, open_documents
from senri.errors import SenriError
from senri.evaluation.charts import perplexity_figure
from senri.evaluation.health import causality_probe, note_of, warning_of
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.perplexity import CurvePoint, Perplexity, sliding_window_perplexity, streaming_perplexity
from senri.evaluation.reader import without_memory
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit

WITH_MEMORY, WITHOUT_MEMORY = "window + memory", "window alone"
SLIDING = "sliding window"

COLUMNS = ("model", "perplexity", "bits per byte", "tokens", "tokens/s")

_PROBE = "causality"
_CURVE_POINTS = 200


@dataclass
class PerplexitySettings:
    """What the section `perplexity` holds; `config/evaluation.yaml` says what each is.

    Raises:
        SenriError: a number out of range.
    """

    text: str | None
    documents: int | Literal["all"]
    tokens: int | Literal["all"]
    state: Literal["carried", "reset"]
    window: int
    stride: int
    chunk_size: int
    block_characters: int
    probe_tokens: int

    def __post_init__(self) -> None:
        least = {
            "documents": 1,
            "tokens": 2,
            "window": 2,
            "stride": 1,
            "chunk_size": 1,
            "block_characters": 1,
            "probe_tokens": 3,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value != "all" and value < smallest:
                raise SenriError(f"{name} is {value}, but it must be at least {smallest}.")
        if self.stride >= self.window:
            raise SenriError(
                f"stride is {self.stride}, but it must be below the window of {self.window}: tokens at the start of a "
                f"window would be scored without context."
            )


def perplexity_units(subject: Subject, settings: PerplexitySettings) -> list[Unit]:
    """Return a unit for every document and way of reading, and one for the causality probe."""
    documents = open_documents(settings.text)
    documents = documents if settings.documents == "all" else documents[: settings.documents]
    groups = [documents] if settings.state == "carried" else [[one] for one in documents]
    units = []
    for number, group in enumerate(groups):
        work = sum(_estimate(subject, settings, document) for document in group)
        for way in _ways(subject):
            run = _scoring(subject, settings, group, way)
            units.append(Unit(f"{number}:{group[0].name}:{way}", work, run))
    return [*units, Unit(_PROBE, settings.probe_tokens, _probing(subject, settings, documents[0]))]


def perplexity_outcome(subject: Subject, settings: PerplexitySettings, results: list[dict[str, Any]]) -> Outcome:
    """Add the documents up, and say what looks wrong."""
    probe = next(result for result in results if result["way"] == _PROBE)
    scored = [result for result in results if result["way"] != _PROBE]
    totals = {way: _total([one for one in scored if one["way"] == way]) for way in _ways(subject)}
    name = {SLIDING: f"{SLIDING} of {settings.window:,}"}
    shown = {name.get(way, way): total for way, total in totals.items()}
    warnings = [f"{way}: {text}" for way, total in shown.items() if (text := warning_of(total.perplexity))]
    notes = {text for total in shown.values() if (text := note_of(total.perplexity))}
    tables = [Table("Perplexity (lower is better)", COLUMNS, rows(shown), " ".join(sorted(notes)))]
    if len({one["document"] for one in scored}) > 1:
        tables.append(_document_table(scored))
    curves = {way: [(point.tokens, point.perplexity) for point in total.curve] for way, total in shown.items()}
    documents = sorted({document for one in scored for document in one["documents"]})
    state = "carried from one document to the next" if settings.state == "carried" else "reset for each document"
    return Outcome(
        headline=", ".join(f"{way} {total.perplexity:.2f}" for way, total in shown.items()),
        results={
            "perplexity": plain(shown),
            "documents": scored,
            "causality": {key: value for key, value in probe.items() if key != "way"},
        },
        counts={"documents": len(documents), "tokens": next(iter(shown.values())).tokens},
        summary=[
            f"{next(iter(shown.values())).tokens:,} tokens of {len(documents)} document(s), state {state}.",
            "Causality probe: a changed token moved no earlier logit."
            if probe["is_causal"]
            else "Causality probe: FAILED.",
        ],
        warnings=[*warnings, *([probe["warning"]] if probe["warning"] else [])],
        tables=tables,
        pictures=[
            Picture(
                "perplexity",
                perplexity_figure(curves),
                "Running perplexity after so many tokens, all documents in a row.",
            )
        ],
    )


def rows(results: dict[str, Perplexity]) -> list[list[str]]:
    """Return results as rows of `COLUMNS`."""
    return [
        [
            name,
            f"{score.perplexity:.3f}",
            "" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}",
            f"{score.tokens:,}",
            f"{score.tokens / score.seconds:,.0f}" if score.seconds else "",
        ]
        for name, score in results.items()
    ]


def plain(results: dict[str, Perplexity]) -> dict[str, Any]:
    """Return results as plain data."""
    return {
        name: {"perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte, **asdict(score)}
        for name, score in results.items()
    }


def num_bytes(tokenizer: Any, ids: Tensor) -> int:
    """Return the UTF-8 length of the text of all tokens `[1, seq]` but the first."""
    text = tokenizer.decode(ids[0, 1:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return len(text.encode())


def _ways(subject: Subject) -> list[str]:
    return [WITH_MEMORY, WITHOUT_MEMORY] if subject.is_senri else [SLIDING]


def _estimate(subject: Subject, settings: PerplexitySettings, document: Document) -> int:
    estimate = TokenStream(document, subject.tokenizer, settings.block_characters).estimate()
    return estimate if settings.tokens == "all" else min(estimate, settings.tokens)


def _ids(subject: Subject, settings: PerplexitySettings, document: Document, tokens: int | None) -> Tensor:
    stream = TokenStream(document, subject.tokenizer, settings.block_characters)
    return torch.tensor([list(islice(stream, tokens))])


def _scoring(subject: Subject, settings: PerplexitySettings, group: list[Document], way: str) -> Any:
    limit = None if settings.tokens == "all" else settings.tokens

    def run(scratch: Scratch) -> dict[str, Any]:
        ids = torch.cat([_ids(subject, settings, document, limit) for document in group], dim=1)
        count = num_bytes(subject.tokenizer, ids)
        if way == SLIDING:
            score = sliding_window_perplexity(
                subject.model, ids, settings.window, settings.stride, num_bytes=count, on_progress=scratch.advance
            )
        else:
            score = _streamed(subject, settings, ids, count, scratch, way)
        score.curve = _thinned(score.curve)
        names = [document.name for document in group]
        return {
            "way": way,
            "document": ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]}",
            "documents": [f"{document.name} {document.sha256[:12]}" for document in group],
            **plain({"score": score})["score"],
        }

    return run


def _streamed(
    subject: Subject, settings: PerplexitySettings, ids: Tensor, count: int, scratch: Scratch, way: str
) -> Perplexity:
    kept = scratch.kept(subject.model)
    reader, result = (subject.reader(), None) if kept is None else (kept[0], _of_plain(kept[1]))
    if result is not None:
        scratch.advance(result.tokens)

    def on_chunk(score: Perplexity, tokens: int) -> None:
        scratch.advance(tokens)
        scratch.keep(reader, lambda: asdict(score))

    def score() -> Perplexity:
        return streaming_perplexity(reader, ids, settings.chunk_size, num_bytes=count, result=result, on_chunk=on_chunk)

    if way == WITH_MEMORY:
        return score()
    with without_memory(subject.model):
        return score()


def _probing(subject: Subject, settings: PerplexitySettings, document: Document) -> Any:
    def run(_: Scratch) -> dict[str, Any]:
        probe = causality_probe(subject.model, _ids(subject, settings, document, settings.probe_tokens))
        return {"way": _PROBE, **asdict(probe), "is_causal": probe.is_causal, "warning": probe.warning}

    return run


def _of_plain(values: dict[str, Any]) -> Perplexity:
    return Perplexity(**{**values, "curve": [CurvePoint(**point) for point in values["curve"]]})


def _total(scores: list[dict[str, Any]]) -> Perplexity:
    """Add up documents; the curve goes on from one to the next."""
    total = Perplexity(bytes=0)
    for score in scores:
        for point in score["curve"]:
            nats = total.nats + point["tokens"] * _log(point["perplexity"])
            tokens = total.tokens + point["tokens"]
            total.curve.append(CurvePoint(tokens, Perplexity(tokens, nats).perplexity))
        total.tokens += score["tokens"]
        total.nats += score["nats"]
        total.seconds += score["seconds"]
        total.bytes = (total.bytes or 0) + score["bytes"]
    return total


def _log(value: float) -> float:
    return math.log(value)


def _thinned(curve: list[CurvePoint]) -> list[CurvePoint]:
    """Keep about `_CURVE_POINTS` points, the last one among them."""
    step = -(-len(curve) // _CURVE_POINTS)
    return curve[::-1][::step][::-1] if step > 1 else curve


def _document_table(scored: list[dict[str, Any]]) -> Table:
    ways = list(dict.fromkeys(one["way"] for one in scored))
    by_document: dict[str, dict[str, dict[str, Any]]] = {}
    for one in scored:
        by_document.setdefault(one["document"], {})[one["way"]] = one
    table = [
        [name, f"{next(iter(found.values()))['tokens']:,}", *(f"{found[way]['perplexity']:.3f}" for way in ways)]
        for name, found in by_document.items()
    ]
    return Table("Perplexity of each document", ("document", "tokens", *ways), table)
