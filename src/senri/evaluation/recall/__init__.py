"""Recall at any length: what is hidden in a long text and asked for at its end, when only the memory can know it."""

from senri.evaluation.recall.outcome import recall_outcome
from senri.evaluation.recall.settings import RecallSettings, RecallTask
from senri.evaluation.recall.units import recall_units

__all__ = ["RecallSettings", "RecallTask", "recall_outcome", "recall_units"]
