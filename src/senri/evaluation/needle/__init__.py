"""Needle in a haystack: facts hidden at chosen depths of a long text, asked for at its end, with controls beside."""

from senri.evaluation.needle.outcome import needle_outcome
from senri.evaluation.needle.samples import Needle, Question, Sample, make_sample
from senri.evaluation.needle.settings import NeedleFormat, NeedleSettings
from senri.evaluation.needle.text import Haystack, hide, open_haystack
from senri.evaluation.needle.units import needle_units

__all__ = [
    "Haystack",
    "Needle",
    "NeedleFormat",
    "NeedleSettings",
    "Question",
    "Sample",
    "hide",
    "make_sample",
    "needle_outcome",
    "needle_units",
    "open_haystack",
]
