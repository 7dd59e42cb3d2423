"""Plain charts that several measurements share: running perplexity, bars, heat maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLUE, ORANGE, GREEN = PALETTE[:3]
_STYLES = ("-", "--", ":", "-.")
_DARK_BELOW = 0.55


def perplexity_figure(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draw running perplexity against scored tokens, one line a model.

    Args:
        curves: name -> (tokens, perplexity) points.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    panel = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        tokens, values = zip(*points, strict=True)
        style = _STYLES[index % len(_STYLES)]
        label = f"{name}: {values[-1]:.2f}"
        panel.plot(tokens, values, style, color=PALETTE[index % len(PALETTE)], linewidth=2, label=label)
    panel.set(xlabel="tokens scored", ylabel="running perplexity")
    panel.xaxis.set_major_formatter(FuncFormatter(short_count))
    panel.legend(frameon=False)
    panel.grid(alpha=0.25)
    return figure


def bar_figure(*panels: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw small panels of bars side by side.

    Args:
        panels: each one title -> {name of the bar: value}.
    """
    titles = [(title, bars) for panel in panels for title, bars in panel.items()]
    figure = Figure(figsize=(3.6 * len(titles), 1.2 + 0.5 * max(len(bars) for _, bars in titles)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(titles), sharey=True)).ravel()
    for axis, (title, bars) in zip(axes, titles, strict=True):
        values = list(bars.values())
        drawn = axis.barh(list(bars), values, color=[PALETTE[index % len(PALETTE)] for index in range(len(bars))])
        axis.bar_label(drawn, [f"{value:.4g}" for value in values], padding=4)
        axis.set_xlim(0, (max(values) or 1) * 1.3)
        axis.set_title(title, loc="left", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    return figure


def heat_map_figure(
    panels: Mapping[str, np.ndarray], columns: Sequence[str], rows: Sequence[str], xlabel: str, ylabel: str, unit: str
) -> Figure:
    """Draw heat maps of shares between 0 and 1 with their values written in, one below the other.

    Args:
        panels: title -> `[rows, columns]`; NaN where nothing was measured.
        columns: their names.
        rows: their names, the first at the top.
        xlabel: what the columns are.
        ylabel: what the rows are.
        unit: what the colour means.
    """
    width = max(5.0, 0.85 * len(columns) + 2.4)
    height = 0.5 * len(rows) + 1.4
    figure = Figure(figsize=(width, height * len(panels)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(panels), 1)).ravel()
    image = None
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.set_title(title, loc="left", fontsize=11)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value < _DARK_BELOW else "black"
                axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour)
    if image is not None:
        bar = figure.colorbar(image, ax=list(axes), label=unit)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    return figure


def short_count(value: float, _: object = None) -> str:
    """Return a count such as `512`, `8K` or `1M`, in powers of 1,024 where they divide it, else of 1,000.

    The second parameter lets it serve as a formatter of ticks.
    """
    for unit, binary, decimal in (("M", 1 << 20, 10**6), ("K", 1 << 10, 10**3)):
        if value >= decimal:
            size = binary if value % binary == 0 else decimal
            return f"{value / size:.4g}{unit}"
    return f"{value:g}"
