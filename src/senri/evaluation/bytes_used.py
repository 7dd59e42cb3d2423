"""Bytes, as a part of an evaluation: what a model carries after so many tokens, by formula and by measurement."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from senri.data import TokenStream, chunks, open_document
from senri.errors import SenriError
from senri.evaluation.bytes_tables import bytes_figure, layer_table, length_table, process_table
from senri.evaluation.figures import human_bytes
from senri.evaluation.footprint import held_bytes, layer_bytes, layer_shapes, process_bytes
from senri.evaluation.kept_bytes import KeptBytes, total_bytes
from senri.evaluation.outcome import Outcome, Picture
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit


@dataclass
class BytesSettings:
    """What the section `bytes` holds; `config/evaluation.yaml` says what each is.

    Raises:
        SenriError: a number out of range.
    """

    text: str | None
    lengths: list[int]
    formula_lengths: list[int]
    chunk_size: int
    block_characters: int

    def __post_init__(self) -> None:
        if not self.lengths:
            raise SenriError("lengths is empty, but it must name at least one number of tokens to read.")
        for name in ("lengths", "formula_lengths"):
            for length in getattr(self, name):
                if length < 1:
                    raise SenriError(f"{name} holds {length}, but a number of tokens must be at least 1.")
        for name in ("chunk_size", "block_characters"):
            if getattr(self, name) < 1:
                raise SenriError(f"{name} is {getattr(self, name)}, but it must be at least 1.")


def bytes_units(subject: Subject, settings: BytesSettings) -> list[Unit]:
    """Return the one unit: a reading of the text that stops at every length.

    Raises:
        SenriError: the text is missing, no text, or shorter than the largest length.
    """
    longest = max(settings.lengths)
    document = open_document(settings.text)
    tokens = list(islice(TokenStream(document, subject.tokenizer, settings.block_characters), longest))
    if len(tokens) < longest:
        raise SenriError(
            f"lengths holds {longest}, but {document.name} has only {len(tokens)} tokens: name a longer text or "
            f"lengths up to that."
        )

    def run(scratch: Scratch) -> dict[str, Any]:
        return {"text": document.name, "sha256": document.sha256, **_reading(subject, settings, tokens, scratch)}

    return [Unit(document.name, longest, run)]


def bytes_outcome(subject: Subject, settings: BytesSettings, results: list[dict[str, Any]]) -> Outcome:
    """Compare what was measured with the formula, layer by layer, and both with full attention."""
    config, dtype = subject.model.config, subject.model.dtype
    measured: list[dict[str, Any]] = results[0]["measured"]
    kept = KeptBytes(layer_shapes(config, dtype), config.get_text_config(decoder=True), dtype, measured)
    warnings = kept.disagreements()
    lengths = sorted({*kept.totals, *settings.formula_lengths})
    last = measured[-1]
    return Outcome(
        headline=f"{human_bytes(total_bytes(last))} after {last['tokens']:,} tokens "
        f"(full attention: {human_bytes(kept.full_attention(last['tokens']))})",
        results={
            "dtype": str(dtype).removeprefix("torch."),
            "measured": measured,
            "by_length": {
                str(tokens): {"formula": kept.formula(tokens), "full_attention": kept.full_attention(tokens)}
                for tokens in lengths
            },
            "layers": [asdict(shape) for shape in kept.shapes],
            "agrees": not warnings,
        },
        counts={"readings": 1, "tokens": last["tokens"], "lengths": len(measured)},
        summary=_summary(kept, lengths[-1]),
        warnings=warnings,
        tables=[length_table(kept, lengths), layer_table(kept), process_table(measured)],
        pictures=[
            Picture(
                "bytes",
                bytes_figure(kept, lengths),
                "Bytes that one sequence keeps, against the tokens read: line by formula, dots measured; dashed what "
                "full attention in every layer keeps.",
            )
        ],
    )


def _reading(subject: Subject, settings: BytesSettings, tokens: Sequence[int], scratch: Scratch) -> dict[str, Any]:
    on_gpu = subject.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(subject.device)
    reader: Any = subject.reader()
    measured, start = [], 0
    for length in sorted(set(settings.lengths)):
        for chunk in chunks(tokens[start:length], settings.chunk_size):
            reader.read(chunk)
            scratch.advance(chunk.shape[1])
        start = length
        measured.append(
            {
                "tokens": reader.tokens_read,
                "layers": [asdict(layer) for layer in layer_bytes(reader.cache)],
                "held_bytes": held_bytes(reader.cache),
                "process_bytes": process_bytes(),
                "gpu_peak_bytes": torch.cuda.max_memory_allocated(subject.device) if on_gpu else None,
            }
        )
    return {"measured": measured}


def _summary(kept: KeptBytes, longest: int) -> list[str]:
    last = kept.measured[-1]
    tokens, total = last["tokens"], total_bytes(last)
    states = sum(layer["state_bytes"] for layer in last["layers"])
    sentences = [
        f"After {tokens:,} tokens one sequence keeps {human_bytes(total)}: {human_bytes(total - states)} of keys and "
        f"values and {human_bytes(states)} of memory states. Full attention of the same shape keeps "
        f"{human_bytes(kept.full_attention(tokens))}.",
    ]
    if longest > tokens:
        sentences.append(
            f"By formula it is {human_bytes(kept.formula(longest))} after {longest:,} tokens, and "
            f"{human_bytes(kept.full_attention(longest))} with full attention."
        )
    below = kept.first_below(longest)
    if below is not None:
        sentences.append(f"It is less than full attention from {below:,} tokens on.")
    return sentences
