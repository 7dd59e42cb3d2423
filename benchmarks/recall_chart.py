"""The chart of associative_recall.py: recall against the number of stored pairs."""

from collections.abc import Sequence
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from recall_measure import BEST, FEATURES_AFTER, NOISY_PAIRS, PAIRS, TARGETS, Row

# Okabe and Ito's palette, which colour-blind readers can tell apart; markers and line styles differ as well.
STYLES = (
    ("#000000", ":", ""),
    ("#555555", "--", "x"),
    ("#0072B2", "-", "s"),
    ("#009E73", "-", "^"),
    ("#D55E00", "-", "o"),
    ("#CC79A7", "-.", "D"),
    ("#E69F00", "-.", "P"),
    ("#56B4E9", "-.", "v"),
    ("#000000", "-.", "*"),
)


def chart(rows: Sequence[Row], title: str) -> Figure:
    """Draw recall against the number of pairs: random tokens left, tokens in a row right."""
    chosen = lines_of_chart(rows)
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (prefix, heading) in zip(panels, (("", "random tokens"), ("run ", "tokens in a row")), strict=True):
        for (label, row), (colour, dash, marker) in zip(chosen, cycle(STYLES), strict=False):
            shown = [n for n in PAIRS if f"{prefix}{n}" in row.found]
            found = [100 * row.found[f"{prefix}{n}"] for n in shown]
            panel.plot(shown, found, dash, marker=marker, color=colour, linewidth=1.8, markersize=6, label=label)
        panel.plot(
            TARGETS.keys(), [100 * x for x in TARGETS.values()], "+", color="black", markersize=12, label="target"
        )
        panel.set(xscale="log", xlabel="stored pairs", ylim=(-2, 103))
        panel.set_xticks(shown)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_title(heading, loc="left")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("pairs found again, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def lines_of_chart(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Choose the lines: ceiling, baseline, the steps of calibration, then each memory type's best row."""
    by_name = {row.name: row for row in rows}
    baseline = next(row for row in rows if row.memory == "tensor")
    chosen = [
        ("exact search, calibrated keys", by_name["exact search", "", "", "calibrated"]),
        (f"raw keys, ELU+1, linear, {baseline.state:,} bytes", baseline),
        ("calibrated, l2, delta", by_name["tensor", "delta", "l2", "calibrated"]),
        ("calibrated, DPFP-3, delta", by_name[BEST]),
        ("the same, features whitened too", by_name["tensor", "delta", FEATURES_AFTER, "calibrated"]),
    ]
    for kind in dict.fromkeys(row.memory for row in rows if row.memory not in ("exact search", "tensor")):
        best = max((row for row in rows if row.memory == kind), key=lambda row: row.found[f"{NOISY_PAIRS}"])
        chosen.append((f"{kind}: calibrated, {best.feature_map}, {best.rule}", best))
    return chosen
