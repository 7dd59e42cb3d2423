"""Measuring honestly: perplexity, needles, benchmarks, bytes, and what a memory keeps; one report for all of it."""

from senri.evaluation.evaluate import Evaluation, evaluate, write_index
from senri.evaluation.footprint import ReadingRecord, kv_cache_bytes, process_bytes, read_chunks
from senri.evaluation.health import CausalityProbe, causality_probe
from senri.evaluation.outcome import Outcome, Picture, Table
from senri.evaluation.parts import PARTS, Part
from senri.evaluation.perplexity import CurvePoint, Perplexity, sliding_window_perplexity, streaming_perplexity
from senri.evaluation.reader import CacheReader, Reader, open_reader
from senri.evaluation.settings import EvaluationSettings, default_settings
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch, Unit, run_units

__all__ = [
    "PARTS",
    "CacheReader",
    "CausalityProbe",
    "CurvePoint",
    "Evaluation",
    "EvaluationSettings",
    "Outcome",
    "Part",
    "Perplexity",
    "Picture",
    "Reader",
    "ReadingRecord",
    "Scratch",
    "Subject",
    "Table",
    "Unit",
    "causality_probe",
    "default_settings",
    "evaluate",
    "kv_cache_bytes",
    "open_reader",
    "process_bytes",
    "read_chunks",
    "run_units",
    "sliding_window_perplexity",
    "streaming_perplexity",
    "write_index",
]
