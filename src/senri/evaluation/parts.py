"""The parts of an evaluation, by name: what `senri eval <name>` and the suite run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from senri.evaluation.babilong import BabilongSettings, babilong_outcome, babilong_units
from senri.evaluation.bytes_used import BytesSettings, bytes_outcome, bytes_units
from senri.evaluation.lambada import LambadaSettings, lambada_outcome, lambada_units
from senri.evaluation.memory_part import MemorySettings, memory_outcome, memory_units
from senri.evaluation.needle import NeedleSettings, needle_outcome, needle_units
from senri.evaluation.outcome import Outcome
from senri.evaluation.perplexity_part import PerplexitySettings, perplexity_outcome, perplexity_units
from senri.evaluation.recall import RecallSettings, recall_outcome, recall_units
from senri.evaluation.reversal import ReversalSettings, reversal_units
from senri.evaluation.reversal_outcome import reversal_outcome
from senri.evaluation.ruler import RulerSettings
from senri.evaluation.ruler_part import ruler_outcome, ruler_part_units
from senri.evaluation.subject import Subject
from senri.evaluation.units import Unit
from senri.evaluation.wikitext import WikitextSettings, wikitext_outcome, wikitext_units


@dataclass(frozen=True)
class Part:
    """One kind of measurement.

    Args:
        title: heading of its section in the report.
        settings: dataclass of what `config/evaluation.yaml` holds in the section of this name.
        units: makes the work, from subject and settings; raises SenriError about whatever is wrong before any is done.
        outcome: makes tables and pictures of the units' results, which come in the units' order.
        needs_memory: whether only Senri models can be measured; a suite leaves the part out for others.
    """

    title: str
    settings: type[Any]
    units: Callable[[Subject, Any], list[Unit]]
    outcome: Callable[[Subject, Any, list[dict[str, Any]]], Outcome]
    needs_memory: bool = False


PARTS: Mapping[str, Part] = {
    "perplexity": Part("Perplexity", PerplexitySettings, perplexity_units, perplexity_outcome),
    "wikitext": Part("WikiText-2", WikitextSettings, wikitext_units, wikitext_outcome),
    "lambada": Part("LAMBADA", LambadaSettings, lambada_units, lambada_outcome),
    "needle": Part("Needle in a haystack", NeedleSettings, needle_units, needle_outcome),
    "recall": Part("Recall at length", RecallSettings, recall_units, recall_outcome, needs_memory=True),
    "ruler": Part("RULER", RulerSettings, ruler_part_units, ruler_outcome),
    "babilong": Part("BABILong: facts in a book", BabilongSettings, babilong_units, babilong_outcome),
    "reversal": Part("Reversal curse", ReversalSettings, reversal_units, reversal_outcome),
    "bytes": Part("Bytes", BytesSettings, bytes_units, bytes_outcome),
    "memory": Part("Memory over time", MemorySettings, memory_units, memory_outcome, needs_memory=True),
}
