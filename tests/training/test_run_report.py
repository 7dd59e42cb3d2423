"""The pictures of a run: what is drawn of each stage's measures."""

from io import BytesIO

import pytest

from senri.training.run_report import recall_figure


def test_the_picture_of_recall_has_every_stage_with_the_measures_it_has() -> None:
    """A stage's measures may begin late or be missing; a constant one is drawn at its value."""
    lines = [
        *({"stage": "memory", "step": step, "met": 0.5} for step in (1, 2, 3)),
        *({"stage": "memory", "step": step, "met": 0.5, "kept": 0.25} for step in (4, 5)),
        {"stage": "full", "step": 1, "kept": 0.125},
    ]
    figure = recall_figure(lines)
    figure.savefig(BytesIO())
    found, found_later, strengths, strengths_later = figure.axes
    (met,) = [line for line in found.lines if len(line.get_xdata())]
    assert list(met.get_xdata()) == [1, 2, 3, 4, 5] and list(met.get_ydata()) == pytest.approx([0.5] * 5)
    (kept,) = [line for line in strengths.lines if len(line.get_xdata())]
    assert list(kept.get_xdata()) == [4, 5] and list(kept.get_ydata()) == pytest.approx([0.25] * 2)
    assert not [line for line in found_later.lines if len(line.get_xdata())]
    (later,) = [line for line in strengths_later.lines if len(line.get_xdata())]
    assert list(later.get_ydata()) == pytest.approx([0.125])
    assert [panel.get_title(loc="left") for panel in (found, found_later)] == ["memory", "full"]


@pytest.mark.parametrize(("measure", "value"), [("correct", 0.1), ("kept", 0.3), ("kept", 0.0)])
def test_a_kind_of_measure_that_is_missing_has_no_panel(measure: str, value: float) -> None:
    """As answers alone, which have no strengths; strengths of zero are drawn as well."""
    lines = [{"stage": "memory", "step": step, measure: value} for step in (1, 2)]
    figure = recall_figure(lines)
    figure.savefig(BytesIO())
    (panel,) = figure.axes
    assert panel.get_ylabel() == ("share" if measure == "correct" else "mean strength")
