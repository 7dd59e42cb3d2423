"""Pictures of the reports, drawn by matplotlib without a screen: what reading costs, and what a memory holds."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from senri.evaluation.charts import BLUE, GREEN, ORANGE, short_count
from senri.evaluation.footprint import ReadingRecord

_GREY = "#555555"
_SPEED_POINTS = 40
_DPI = 150


def human_bytes(count: float) -> str:
    """Return a byte count such as `34.6 MB` (1 MB = 10^6 bytes)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def reading_figure(records: Sequence[ReadingRecord], cache_bytes: Callable[[int], int]) -> Figure:
    """Draw what a session carries and how fast it reads, both against the tokens read.

    Args:
        records: what `read_chunks` said, in order.
        cache_bytes: bytes of full attention's KV cache for a number of tokens.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_bytes(left, records, cache_bytes)
    _draw_speed(right, records)
    return figure


def spectrum_figure(spectra: dict[str, np.ndarray]) -> Figure:
    """Draw the singular values of memory matrices, one panel a layer and one line a head.

    Args:
        spectra: panel title -> singular values `[heads, rank]`, descending.
    """
    columns = min(len(spectra), 3) or 1
    rows = -(-len(spectra) // columns) or 1
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
    for panel, (title, values) in zip(panels, spectra.items(), strict=False):
        index = np.arange(1, values.shape[1] + 1)
        positive = np.where(values > 0, values, np.nan)
        panel.plot(index, positive.T, linewidth=1, alpha=0.6, color=BLUE)
        panel.plot([], [], linewidth=1, color=BLUE, label="each head")
        panel.plot(index, np.median(positive, axis=0), linewidth=2, color=ORANGE, label="median of the heads")
        panel.set(title=title, xlabel="index of the singular value")
        if (values > 0).any():
            panel.set_yscale("log")
        panel.grid(alpha=0.25)
    for panel in panels[len(spectra) :]:
        panel.axis("off")
    panels[0].set_ylabel("singular value")
    panels[0].legend(frameon=False)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": "senri"})
    return buffer.getvalue()


def _draw_bytes(panel: Axes, records: Sequence[ReadingRecord], cache_bytes: Callable[[int], int]) -> None:
    tokens = np.array([record.tokens for record in records])
    carried = np.array([record.state_bytes + record.window_bytes for record in records])
    state = np.array([record.state_bytes for record in records])
    cache = np.array([cache_bytes(int(count)) for count in tokens])
    lines = (
        ("KV cache of full attention", cache, ORANGE, "--"),
        ("Senri: memory + window", carried, BLUE, "-"),
        ("Senri: memory alone", state, GREEN, ":"),
    )
    for label, values, colour, style in lines:
        panel.plot(tokens, values, style, color=colour, linewidth=2.2, label=f"{label}: {human_bytes(values[-1])}")
        panel.plot(tokens[-1], values[-1], "o", color=colour, markersize=6)
    panel.set(xscale="log", yscale="log", xlabel="tokens read", ylabel="bytes")
    # Room above the lines for the legend, so that it covers none of them.
    low, high = min(state.min(), cache.min()), max(cache.max(), carried.max())
    panel.set_ylim(max(low, 1) / 2, high * (high / max(low, 1)) ** 0.45 * 2)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(short_count))
    panel.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value).replace(".0", "")))
    panel.set_title(f"What is carried after {tokens[-1]:,} tokens", loc="left")
    panel.legend(frameon=False, loc="upper left")
    panel.grid(alpha=0.25)


def _draw_speed(panel: Axes, records: Sequence[ReadingRecord]) -> None:
    # A chunk's time is noisy: neighbours are joined so that about _SPEED_POINTS points remain.
    width = max(1, len(records) // _SPEED_POINTS)
    groups = [records[start : start + width] for start in range(0, len(records), width)]
    tokens = [group[-1].tokens for group in groups]
    speed = [sum(one.chunk_tokens for one in group) / sum(one.seconds for one in group) for group in groups]
    mean = sum(one.chunk_tokens for one in records) / sum(one.seconds for one in records)
    panel.plot(tokens, speed, "-", marker="o", markersize=4, color=BLUE, linewidth=1.5, label="measured")
    panel.axhline(mean, color=_GREY, linestyle="--", linewidth=1.2, label=f"mean: {mean:,.0f} tokens/s")
    top = max([*speed, mean]) * 1.35
    panel.set(xlabel="tokens read", ylabel="tokens/s", ylim=(0, top))
    panel.set_xlim(0, tokens[-1] * 1.05)
    panel.xaxis.set_major_formatter(FuncFormatter(short_count))
    ratio = panel.twinx()
    ratio.set(ylabel="ratio to the mean", ylim=(0, top / mean))
    panel.set_title("Reading speed", loc="left")
    panel.legend(frameon=False, loc="upper left", ncols=2)
    panel.grid(alpha=0.25)
