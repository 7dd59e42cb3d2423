"""A memory over time, as a part of an evaluation: what it holds and writes while the model reads a real text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from senri.data import TokenStream, open_document
from senri.errors import SenriError
from senri.evaluation.charts import PALETTE
from senri.evaluation.memory_trace import MemoryTrace, Writes, gates, held_state, record_memory, writing_branches
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit
from senri.evaluation.written_tokens import html_of

_PANELS = {
    "norm": "norm of M",
    "effective_rank": "effective rank of M",
    "change": "change of M by a token",
    "write_strength": "write strength (beta)",
    "decay": "decay (alpha)",
}
_ROUNDED = 4
_NUMBERED_HEADS = 16


@dataclass
class MemorySettings:
    """What the section `memory` holds; `config/evaluation.yaml` says what each is.

    Raises:
        SenriError: a number out of range.
    """

    text: str | None
    tokens: int | Literal["all"]
    chunk_size: int
    every: int
    shown_tokens: int
    block_characters: int

    def __post_init__(self) -> None:
        for name in ("tokens", "chunk_size", "every", "shown_tokens", "block_characters"):
            value = getattr(self, name)
            if value != "all" and value < 1:
                raise SenriError(f"{name} is {value}, but it must be at least 1.")


def memory_units(subject: Subject, settings: MemorySettings) -> list[Unit]:
    """Return the one unit: a reading of the text with the memories watched.

    Raises:
        SenriError: the model has no memory, or the text is missing or no text.
    """
    if not subject.is_senri:
        raise SenriError(f"{subject.name} has no memory to look into: name a converted model that has memory layers.")
    writing_branches(subject.model)
    document = open_document(settings.text)
    stream = TokenStream(document, subject.tokenizer, settings.block_characters)
    ids = list(islice(stream, None if settings.tokens == "all" else settings.tokens))

    def run(scratch: Scratch) -> dict[str, Any]:
        return {"text": document.name, "sha256": document.sha256, **_reading(subject, settings, ids, scratch)}

    return [Unit(document.name, len(ids), run)]


def memory_outcome(subject: Subject, settings: MemorySettings, results: list[dict[str, Any]]) -> Outcome:
    """Draw what was seen over time, and show the text as the memory wrote it."""
    result = results[0]
    looks, shown = result["looks"], result["shown"]
    last = looks[-1]
    norm, rank = (_over_layers(last, name) for name in ("norm", "effective_rank"))
    gated = {layer: values for layer, values in result["gates"].items() if values}
    summary = [
        f"{result['tokens']:,} tokens of {result['text']} were read, and the state looked at every "
        f"{settings.every:,} tokens. At the end M has norm {_number(norm)} and effective rank {rank:.1f}, means over "
        f"layers and heads.",
    ]
    if gated:
        values = [value for heads in gated.values() for value in heads]
        summary.append(
            f"The gates give the memory between {min(values):.1%} and {max(values):.1%} of a head's output, "
            f"{sum(values) / len(values):.1%} on average."
        )
    summary.append(
        "A token's number is the norm of what it alone adds to its head's matrix, ||beta phi(k)|| ||v - held||, where "
        "held is what the memory already returns for its key (nothing under the linear rule)."
    )
    return Outcome(
        headline=f"norm {_number(norm)}, effective rank {rank:.1f} after {last['tokens']:,} tokens",
        results=result,
        counts={"readings": 1, "tokens": result["tokens"], "looks": len(looks), "shown_tokens": len(shown["ids"])},
        summary=summary,
        warnings=_warnings(looks),
        tables=[_table(result)],
        pictures=[Picture("memory", _figure(looks, gated), _caption(looks, gated))],
        html=html_of(
            subject.tokenizer, shown["ids"], {int(layer): values for layer, values in shown["strengths"].items()}
        ),
    )


def _reading(subject: Subject, settings: MemorySettings, ids: list[int], scratch: Scratch) -> dict[str, Any]:
    reader: Any = subject.reader()
    heads = {layer: branch.num_key_value_heads for layer, branch in writing_branches(subject.model).items()}
    looks: list[dict[str, Any]] = []
    changes: dict[int, list[torch.Tensor]] = {layer: [] for layer in heads}
    with record_memory(subject.model) as trace:
        for start in range(0, len(ids), settings.every):
            end = min(start + settings.every, len(ids))
            for first in range(start, end, settings.chunk_size):
                chunk = ids[first : min(first + settings.chunk_size, end)]
                reader.read(torch.tensor([chunk]))
                scratch.advance(len(chunk))
            writes = trace.take_writes()
            looks.append(_look(reader, heads, writes, trace))
            for layer, written in writes.items():
                changes[layer].append(written.change)
    strengths = {}
    late = {layer: branch.config.tokens_late for layer, branch in writing_branches(subject.model).items()}
    for layer, pieces in changes.items():
        change = torch.cat(pieces, dim=1).double()
        # What is written at a token may be an earlier one; the last ones are not written yet.
        change = change[:, late[layer] :]
        change = torch.nn.functional.pad(change, (0, len(ids) - change.shape[1]))
        # Heads differ in the size of their keys and values; in units of its own mean each counts alike.
        relative = change / change.mean(dim=1, keepdim=True).clamp(min=torch.finfo(change.dtype).tiny)
        values = relative.mean(dim=0)[-settings.shown_tokens :].tolist()
        strengths[str(layer)] = [round(value, _ROUNDED) for value in values]
    return {
        "tokens": len(ids),
        "looks": looks,
        "gates": {str(layer): values for layer, values in gates(subject.model).items()},
        "shown": {"ids": ids[-settings.shown_tokens :], "strengths": strengths},
    }


def _look(reader: Any, heads: Mapping[int, int], writes: Mapping[int, Writes], trace: MemoryTrace) -> dict[str, Any]:
    """Return what each state holds now, and the means of what was written since the last look."""
    layers: dict[str, dict[str, Any]] = {}
    for layer, count in heads.items():
        written = writes[layer].at_least_one()
        layers[str(layer)] = {
            **asdict(held_state(reader.memory_layers[layer].memory_state, count)),
            "change": written.change.mean(dim=1).tolist(),
            "write_strength": written.strength.mean(dim=1).tolist(),
            "decay": None if written.decay is None else written.decay.mean(dim=1).tolist(),
        }
    shares = {str(layer): share for layer, share in trace.take_shares().items()}
    return {"tokens": reader.tokens_read, "layers": layers, "memory_to_attention": shares}


def _over_layers(look: dict[str, Any], name: str) -> float:
    values: list[float] = [value for layer in look["layers"].values() for value in layer[name]]
    return sum(values) / len(values)


def _number(value: float) -> str:
    """Return three digits, or all those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _warnings(looks: Sequence[dict[str, Any]]) -> list[str]:
    warnings = []
    for layer, last in looks[-1]["layers"].items():
        if not all(torch.tensor(last["norm"]).isfinite()):
            warnings.append(f"Layer {layer}: M holds values that are not finite.")
        elif not any(last["norm"]):
            warnings.append(f"Layer {layer}: nothing stands in M; it is frozen, or the text is shorter than a segment.")
    return warnings


def _table(result: dict[str, Any]) -> Table:
    last, rows = result["looks"][-1], []
    for layer in sorted({*last["layers"], *result["gates"], *last["memory_to_attention"]}, key=int):
        held, gate = last["layers"].get(layer), result["gates"].get(layer)
        share = last["memory_to_attention"].get(layer)
        rows.append(
            [
                layer,
                *(_span(held[name]) if held and held[name] else "" for name in ("norm", "z_norm", *list(_PANELS)[1:])),
                _span(gate) if gate else "",
                "" if share is None else _number(share),
            ]
        )
    columns = ("layer", "norm of M", "norm of z", *list(_PANELS.values())[1:], "gate", "memory / attention")
    note = (
        "Mean over heads, and in brackets from the smallest to the largest head. Change, write strength, decay and the "
        "ratio of the norms of memory and attention are means since the last look. Layers that read another layer's "
        "memory have no state of their own."
    )
    return Table(f"The memories after {last['tokens']:,} tokens", columns, rows, note)


def _span(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{_number(mean)} ({_number(min(values))} to {_number(max(values))})"


def _chosen(layers: Sequence[str]) -> list[str]:
    """Return at most as many layers as there are colours, evenly spread, first and last among them."""
    count = min(len(layers), len(PALETTE))
    return [layers[round(place * (len(layers) - 1) / max(count - 1, 1))] for place in range(count)]


def _caption(looks: Sequence[dict[str, Any]], gated: Mapping[str, Any]) -> str:
    layers = list(looks[0]["layers"])
    drawn = "" if len(layers) <= len(PALETTE) else f" Drawn are {len(PALETTE)} of {len(layers)} layers."
    below = " Below the gates, each layer's memory share by query head." if gated else ""
    return (
        f"The memories over the tokens read: lines are means over heads, bands reach from head to head.{drawn}{below}"
    )


def _figure(looks: Sequence[dict[str, Any]], gated: Mapping[str, Sequence[float]]) -> Figure:
    layers = _chosen(list(looks[0]["layers"]))
    names = [name for name in _PANELS if any(looks[0]["layers"][layer][name] is not None for layer in layers)]
    added = list(looks[0]["memory_to_attention"])
    heights = [2.3] * (len(names) + bool(added)) + [1.1 + 0.3 * len(gated)] * bool(gated)
    figure = Figure(figsize=(7, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    tokens = [look["tokens"] for look in looks]
    for name, panel in zip(names, panels, strict=False):
        for layer, colour in zip(layers, PALETTE, strict=False):
            values = [look["layers"][layer][name] for look in looks]
            if values[0] is not None:
                _line_with_band(panel, tokens, values, colour, f"layer {layer}")
        _finish(panel, _PANELS[name])
    if added:
        panel = panels[len(names)]
        for layer, colour in zip(_chosen(added), PALETTE, strict=False):
            _line_with_band(panel, tokens, [[look["memory_to_attention"][layer]] for look in looks], colour, layer)
        _finish(panel, "norm of the memory's output / attention's")
    panels[0].legend(frameon=False, fontsize=11, ncols=3)
    panels[len(names) + bool(added) - 1].set_xlabel("tokens read", fontsize=12)
    if gated:
        _draw_gates(figure, panels[-1], gated)
    return figure


def _line_with_band(
    panel: Axes, tokens: Sequence[int], values: Sequence[Sequence[float]], colour: str, label: str
) -> None:
    means = [sum(heads) / len(heads) for heads in values]
    panel.plot(tokens, means, "-o", color=colour, linewidth=2, markersize=3, label=label)
    panel.fill_between(tokens, [min(one) for one in values], [max(one) for one in values], color=colour, alpha=0.15)


def _finish(panel: Axes, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=13)
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    )
    panel.tick_params(labelsize=11)
    panel.grid(alpha=0.25)


def _draw_gates(figure: Figure, panel: Axes, gated: Mapping[str, Sequence[float]]) -> None:
    image = panel.imshow([*gated.values()], aspect="auto", cmap="cividis", vmin=0, vmax=1)
    panel.set_yticks(range(len(gated)), [f"layer {layer}" for layer in gated])
    panel.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    panel.set_xlabel("query head", fontsize=12)
    panel.set_title("gate: the memory's share of a head, in percent", loc="left", fontsize=13)
    panel.tick_params(labelsize=11)
    figure.colorbar(image, ax=panel).ax.tick_params(labelsize=10)
    if max(len(heads) for heads in gated.values()) > _NUMBERED_HEADS:
        return
    for row, heads in enumerate(gated.values()):
        for column, share in enumerate(heads):
            colour = "white" if share < 0.5 else "black"
            panel.text(column, row, f"{100 * share:.2g}", ha="center", va="center", color=colour, fontsize=11)
