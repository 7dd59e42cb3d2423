"""Training: three stages from a converted model to one that uses its memory, on transformers' Trainer."""

from senri.training.config import ExperimentConfig, ModelConfig, Recipe, StageConfig, TrainingConfig
from senri.training.manager import ConfigManager
from senri.training.three_stage import ThreeStageTrainer, TrainingOutcome

__all__ = [
    "ConfigManager",
    "ExperimentConfig",
    "ModelConfig",
    "Recipe",
    "StageConfig",
    "ThreeStageTrainer",
    "TrainingConfig",
    "TrainingOutcome",
]
