"""Measuring honestly: perplexity, the size of what a model carries, the report that shows them."""

from senri.evaluation.footprint import ReadingRecord, kv_cache_bytes, process_bytes, read_chunks
from senri.evaluation.perplexity import CurvePoint, Perplexity, sliding_window_perplexity, streaming_perplexity

__all__ = [
    "CurvePoint",
    "Perplexity",
    "ReadingRecord",
    "kv_cache_bytes",
    "process_bytes",
    "read_chunks",
    "sliding_window_perplexity",
    "streaming_perplexity",
]
