"""The settings of all parts: what `config/evaluation.yaml` holds, one section a part."""

from dataclasses import dataclass
from typing import Literal

from senri.errors import SenriError, nearest
from senri.evaluation.babilong import BabilongSettings
from senri.evaluation.bytes_used import BytesSettings
from senri.evaluation.lambada import LambadaSettings
from senri.evaluation.memory_part import MemorySettings
from senri.evaluation.needle import NeedleSettings
from senri.evaluation.parts import PARTS
from senri.evaluation.perplexity_part import PerplexitySettings
from senri.evaluation.recall import RecallSettings
from senri.evaluation.reversal import ReversalSettings
from senri.evaluation.ruler import RulerSettings
from senri.evaluation.wikitext import WikitextSettings
from senri.settings import load_settings


@dataclass
class EvaluationSettings:
    """Everything about an evaluation; `config/evaluation.yaml` says what each is.

    Raises:
        SenriError: a part that does not exist, or a value out of range.
    """

    suite: list[str]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: str
    save_every_seconds: float
    perplexity: PerplexitySettings
    wikitext: WikitextSettings
    lambada: LambadaSettings
    needle: NeedleSettings
    recall: RecallSettings
    ruler: RulerSettings
    babilong: BabilongSettings
    reversal: ReversalSettings
    bytes: BytesSettings
    memory: MemorySettings

    def __post_init__(self) -> None:
        for part in self.suite:
            if part not in PARTS:
                raise SenriError(f"suite names {part!r}, which is no measurement: {nearest(part, PARTS)}")
        if self.save_every_seconds <= 0:
            raise SenriError(f"save_every_seconds is {self.save_every_seconds}, but it must be above 0.")


def default_settings() -> EvaluationSettings:
    """Return what `config/evaluation.yaml` says."""
    return load_settings(EvaluationSettings, "evaluation")
