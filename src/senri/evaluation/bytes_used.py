"""Bytes, as a part of an evaluation: what a model carries after so many tokens, by formula and by measurement."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from senri.data import TokenStream, chunks, open_document
from senri.errors import SenriError
from senri.evaluation.charts import BLUE, ORANGE, short_count
from senri.evaluation.figures import human_bytes
from senri.evaluation.footprint import (
    LayerShape,
    held_bytes,
    kv_cache_bytes,
    layer_bytes,
    layer_shapes,
    process_bytes,
)
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit

# Two of Okabe and Ito's colours; line styles and markers differ as well.
_LINE_POINTS = 100


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
    measured: list[dict[str, Any]] = results[0]["measured"]
    dtype = subject.model.dtype
    shapes = layer_shapes(subject.model.config, dtype)
    config = subject.model.config.get_text_config(decoder=True)

    def formula(tokens: int) -> int:
        return sum(shape.total_bytes(tokens) for shape in shapes)

    def full_attention(tokens: int) -> int:
        return kv_cache_bytes(config, tokens, dtype)

    warnings, notes = _disagreements(shapes, measured)
    read = {one["tokens"]: one for one in measured}
    lengths = sorted({*read, *settings.formula_lengths})
    last = measured[-1]
    by_length = {
        str(tokens): {"formula": formula(tokens), "full_attention": full_attention(tokens)} for tokens in lengths
    }
    total = _total(last)
    return Outcome(
        headline=f"{human_bytes(total)} after {last['tokens']:,} tokens "
        f"(full attention: {human_bytes(full_attention(last['tokens']))})",
        results={
            "dtype": str(dtype).removeprefix("torch."),
            "measured": measured,
            "by_length": by_length,
            "layers": [asdict(shape) for shape in shapes],
            "agrees": not warnings,
        },
        counts={"readings": 1, "tokens": last["tokens"], "lengths": len(measured)},
        summary=_summary(last, lengths[-1], formula, full_attention),
        warnings=warnings,
        tables=[
            _length_table(lengths, read, formula, full_attention, notes),
            _layer_table(shapes, last),
            _process_table(measured),
        ],
        pictures=[
            Picture(
                "bytes",
                _figure(lengths, read, formula, full_attention),
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


def _disagreements(shapes: Sequence[LayerShape], measured: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return a warning for every layer whose measured bytes are not the formula's, and notes on what it cannot say."""
    warnings, notes = [], []
    for index, shape in enumerate(shapes):
        if shape.is_sparse:
            notes.append(f"Layer {index} stores only what was written; its formula is the most that it can take.")
        if shape.state_bytes is None:
            notes.append(f"Layer {index} has a state whose size its configuration does not tell; it is only measured.")
        for one in measured:
            found, tokens = one["layers"][index], one["tokens"]
            pairs = {"keys and values": (found["key_value_bytes"], shape.key_value_bytes(tokens))}
            if shape.state_bytes is not None:
                pairs["memory state"] = (found["state_bytes"], shape.state_bytes)
            for name, (is_there, expected) in pairs.items():
                may_be_less = shape.is_sparse and name == "memory state"
                if is_there > expected or (is_there < expected and not may_be_less):
                    warnings.append(
                        f"Layer {index} ({shape.kind}): after {tokens:,} tokens its {name} take {is_there:,} bytes, "
                        f"but the formula says {expected:,}."
                    )
    return warnings, notes


def _summary(
    last: dict[str, Any], longest: int, formula: Callable[[int], int], full_attention: Callable[[int], int]
) -> list[str]:
    tokens, total = last["tokens"], _total(last)
    states = sum(layer["state_bytes"] for layer in last["layers"])
    sentences = [
        f"After {tokens:,} tokens one sequence keeps {human_bytes(total)}: {human_bytes(total - states)} of keys and "
        f"values and {human_bytes(states)} of memory states. Full attention of the same shape keeps "
        f"{human_bytes(full_attention(tokens))}.",
    ]
    if longest > tokens:
        sentences.append(
            f"By formula it is {human_bytes(formula(longest))} after {longest:,} tokens, and "
            f"{human_bytes(full_attention(longest))} with full attention."
        )
    if formula(longest) < full_attention(longest):
        sentences.append(
            f"It is less than full attention from {_crossing(longest, formula, full_attention):,} tokens on."
        )
    return sentences


def _crossing(longest: int, formula: Callable[[int], int], full_attention: Callable[[int], int]) -> int:
    """Return the first number of tokens at which the formula is below full attention.

    What full attention keeps more than the formula never shrinks as tokens come, so halving finds it.
    """
    low, high = 0, longest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if formula(middle) < full_attention(middle) else (middle, high)
    return high


def _length_table(
    lengths: Sequence[int],
    read: dict[int, dict[str, Any]],
    formula: Callable[[int], int],
    full_attention: Callable[[int], int],
    notes: Sequence[str],
) -> Table:
    rows = []
    for tokens in lengths:
        rows.append(
            [
                f"{tokens:,}",
                f"{_total(read[tokens]):,}" if tokens in read else "",
                f"{formula(tokens):,}",
                human_bytes(formula(tokens)),
                f"{full_attention(tokens):,}",
                f"{full_attention(tokens) / formula(tokens):,.2f}" if formula(tokens) else "",
            ]
        )
    columns = ("tokens", "measured bytes", "formula", "in short", "full attention", "full attention / formula")
    note = "Rows without a measurement are by formula alone. " + " ".join(notes)
    return Table("Bytes that one sequence keeps", columns, rows, note.strip())


def _layer_table(shapes: Sequence[LayerShape], last: dict[str, Any]) -> Table:
    tokens, rows = last["tokens"], []
    for index, (shape, found) in enumerate(zip(shapes, last["layers"], strict=True)):
        state = "not known" if shape.state_bytes is None else f"{shape.state_bytes:,}"
        rows.append(
            [
                str(index),
                shape.kind,
                f"{found['key_value_bytes']:,}",
                f"{shape.key_value_bytes(tokens):,}",
                f"{found['state_bytes']:,}",
                f"at most {state}" if shape.is_sparse else state,
            ]
        )
    columns = ("layer", "kind", "keys and values", "by formula", "memory state", "by formula")
    return Table(f"Bytes of each layer after {tokens:,} tokens", columns, rows)


def _process_table(measured: Sequence[dict[str, Any]]) -> Table:
    has_gpu = measured[0]["gpu_peak_bytes"] is not None
    rows = [
        [
            f"{one['tokens']:,}",
            human_bytes(_total(one)),
            human_bytes(one["held_bytes"]),
            human_bytes(one["process_bytes"]),
            *([human_bytes(one["gpu_peak_bytes"])] if has_gpu else []),
        ]
        for one in measured
    ]
    columns = ("tokens", "kept", "storage behind it", "process memory", *(["GPU memory, peak"] if has_gpu else []))
    note = (
        "A window is a view of the last chunk and the window before it, so that its storage is longer by that chunk. "
        "Process memory holds the weights and everything else."
    )
    return Table("Memory of the process", columns, rows, note)


def _figure(
    lengths: Sequence[int],
    read: dict[int, dict[str, Any]],
    formula: Callable[[int], int],
    full_attention: Callable[[int], int],
) -> Figure:
    figure = Figure(figsize=(7, 5), layout="constrained")
    panel = figure.subplots()
    low, high = lengths[0], max(lengths[-1], lengths[0] + 1)
    steps = [low * (high / low) ** (step / _LINE_POINTS) for step in range(_LINE_POINTS + 1)]
    grid = sorted({round(step) for step in steps})
    panel.plot(grid, [full_attention(one) for one in grid], "--", color=ORANGE, linewidth=2.2, label="full attention")
    panel.plot(grid, [formula(one) for one in grid], "-", color=BLUE, linewidth=2.2, label="this model, by formula")
    panel.plot([*read], [_total(one) for one in read.values()], "o", color=BLUE, markersize=8, label="measured")
    panel.set(xscale="log", yscale="log")
    panel.set_xlabel("tokens read", fontsize=13)
    panel.set_title("Bytes that one sequence keeps", loc="left", fontsize=14)
    panel.xaxis.set_major_formatter(FuncFormatter(short_count))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value).replace(".0", "")))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    panel.tick_params(labelsize=12)
    panel.legend(frameon=False, fontsize=13)
    panel.grid(alpha=0.25)
    return figure


def _total(measurement: dict[str, Any]) -> int:
    return sum(layer["key_value_bytes"] + layer["state_bytes"] for layer in measurement["layers"])
