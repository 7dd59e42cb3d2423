"""WikiText-2 by page, as lm-eval's `wikitext`: perplexity of words and of bytes, comparable between tokenizers."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from senri.data.wikitext import detokenise, wikitext_pages
from senri.errors import SenriError
from senri.evaluation.charts import bar_figure
from senri.evaluation.loglikelihood import prefix_token
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.perplexity import Perplexity, sliding_window_perplexity, streaming_perplexity
from senri.evaluation.reader import without_memory
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit


@dataclass
class WikitextSettings:
    """What the section `wikitext` holds; `config/evaluation.yaml` says what each is.

    Raises:
        SenriError: a number out of range.
    """

    data: str | None
    pages: int | Literal["all"]
    window: int | None
    chunk_size: int

    def __post_init__(self) -> None:
        for name in ("pages", "window", "chunk_size"):
            value = getattr(self, name)
            if value not in ("all", None) and value < 1:
                raise SenriError(f"{name} is {value}, but it must be at least 1.")


def wikitext_units(subject: Subject, settings: WikitextSettings) -> list[Unit]:
    """Return a unit for every page and way that the model can be run."""
    pages = wikitext_pages(settings.data)
    pages = pages if settings.pages == "all" else pages[: settings.pages]
    return [
        Unit(f"{way}:{number}", len(page), _scoring(subject, settings, way, page))
        for way in _ways(subject)
        for number, page in enumerate(pages)
    ]


def wikitext_outcome(subject: Subject, settings: WikitextSettings, results: list[dict[str, Any]]) -> Outcome:
    """Add the pages up."""
    found: dict[str, dict[str, float]] = {}
    for way in _ways(subject):
        pages = [result for result in results if result["way"] == way]
        nats = math.fsum(page["nats"] for page in pages)
        words, size, tokens = (sum(page[name] for page in pages) for name in ("words", "bytes", "tokens"))
        found[way] = {
            "word_perplexity": math.exp(nats / words),
            "byte_perplexity": math.exp(nats / size),
            "bits_per_byte": nats / size / math.log(2),
            "token_perplexity": math.exp(nats / tokens),
            "tokens": tokens,
            "words": words,
            "bytes": size,
        }
    first = next(iter(found.values()))
    how = (
        "each page one stream, with the state carried through it"
        if subject.is_senri
        else f"windows of {_window(subject, settings):,} tokens one after the other, as lm-eval reads them"
    )
    table = Table(
        "WikiText-2",
        ("model", "per word", "per byte", "bits per byte", "per token"),
        [
            [
                way,
                f"{one['word_perplexity']:.4f}",
                f"{one['byte_perplexity']:.4f}",
                f"{one['bits_per_byte']:.4f}",
                f"{one['token_perplexity']:.4f}",
            ]
            for way, one in found.items()
        ],
        f"Perplexities; {how}. Words and bytes are counted before the text is detokenised, as lm-eval counts them.",
    )
    figure = bar_figure(
        {"perplexity of a word": {way: one["word_perplexity"] for way, one in found.items()}},
        {"bits per byte": {way: one["bits_per_byte"] for way, one in found.items()}},
    )
    pages_read = len(results) // len(found)
    return Outcome(
        headline=", ".join(f"{way} {one['word_perplexity']:.2f} per word" for way, one in found.items()),
        results=found,
        counts={"pages": pages_read, "tokens": first["tokens"], "words": first["words"]},
        summary=[f"{pages_read} pages, {int(first['tokens']):,} tokens; {how}."],
        tables=[table],
        pictures=[Picture("wikitext", figure, "Perplexity of a word, and bits for a byte of text.")],
    )


def _ways(subject: Subject) -> list[str]:
    return ["memory on", "memory off"] if subject.is_senri else ["model"]


def _window(subject: Subject, settings: WikitextSettings) -> int:
    return settings.window or subject.context


def _scoring(subject: Subject, settings: WikitextSettings, way: str, page: str) -> Any:
    def run(scratch: Scratch) -> dict[str, Any]:
        ids = torch.tensor([[prefix_token(subject.tokenizer), *subject.tokenizer(detokenise(page))["input_ids"]]])
        if way == "memory off":
            with without_memory(subject.model):
                score = _score(subject, settings, ids)
        else:
            score = _score(subject, settings, ids)
        scratch.advance(len(page))
        return {
            "way": way,
            "nats": score.nats,
            "tokens": score.tokens,
            "words": len(re.split(r"\s+", page)),
            "bytes": len(page.encode()),
        }

    return run


def _score(subject: Subject, settings: WikitextSettings, ids: Tensor) -> Perplexity:
    if subject.is_senri:
        return streaming_perplexity(subject.reader(), ids, settings.chunk_size)
    window = _window(subject, settings)
    return sliding_window_perplexity(subject.model, ids, window, window)
