"""What a report shows of the bytes that a model keeps: three tables and a picture."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from senri.evaluation.charts import BLUE, ORANGE, short_count
from senri.evaluation.figures import human_bytes
from senri.evaluation.kept_bytes import KeptBytes, total_bytes
from senri.evaluation.outcome import Table

_LINE_POINTS = 100


def length_table(kept: KeptBytes, lengths: Sequence[int]) -> Table:
    """Compare what was measured with the formula and with full attention, a row a length."""
    rows, totals = [], kept.totals
    for tokens in lengths:
        formula, full_attention = kept.formula(tokens), kept.full_attention(tokens)
        rows.append(
            [
                f"{tokens:,}",
                f"{totals[tokens]:,}" if tokens in totals else "",
                f"{formula:,}",
                human_bytes(formula),
                f"{full_attention:,}",
                f"{full_attention / formula:,.2f}" if formula else "",
            ]
        )
    columns = ("tokens", "measured bytes", "formula", "in short", "full attention", "full attention / formula")
    note = " ".join(["Rows without a measurement are by formula alone.", *kept.limits()])
    return Table("Bytes that one sequence keeps", columns, rows, note)


def layer_table(kept: KeptBytes) -> Table:
    """Compare the last measurement with the formula, a row a layer."""
    last = kept.measured[-1]
    tokens, rows = last["tokens"], []
    for index, (shape, found) in enumerate(zip(kept.shapes, last["layers"], strict=True)):
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


def process_table(measured: Sequence[dict[str, Any]]) -> Table:
    """Say what the process held at each measurement, of which what is kept is a part."""
    has_gpu = measured[0]["gpu_peak_bytes"] is not None
    rows = [
        [
            f"{one['tokens']:,}",
            human_bytes(total_bytes(one)),
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


def bytes_figure(kept: KeptBytes, lengths: Sequence[int]) -> Figure:
    """Draw the bytes against the tokens read, from the first length to the last."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    panel = figure.subplots()
    low, high = lengths[0], max(lengths[-1], lengths[0] + 1)
    steps = [low * (high / low) ** (step / _LINE_POINTS) for step in range(_LINE_POINTS + 1)]
    grid = sorted({round(step) for step in steps})
    panel.plot(
        grid, [kept.full_attention(one) for one in grid], "--", color=ORANGE, linewidth=2.2, label="full attention"
    )
    panel.plot(
        grid, [kept.formula(one) for one in grid], "-", color=BLUE, linewidth=2.2, label="this model, by formula"
    )
    panel.plot([*kept.totals], [*kept.totals.values()], "o", color=BLUE, markersize=8, label="measured")
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
