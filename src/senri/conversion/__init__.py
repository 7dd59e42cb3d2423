"""Conversion: a pretrained checkpoint becomes a Senri model."""

from senri.conversion.calibrate import CalibrationSettings
from senri.conversion.converter import ConversionResult, convert
from senri.conversion.loading import load_base
from senri.conversion.preset import Preset, load_preset
from senri.conversion.sources import ResolvedBase, resolve_base

__all__ = [
    "CalibrationSettings",
    "ConversionResult",
    "Preset",
    "ResolvedBase",
    "convert",
    "load_base",
    "load_preset",
    "resolve_base",
]
