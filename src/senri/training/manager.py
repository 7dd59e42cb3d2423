"""ConfigManager: the three files of `config/`, a recipe over them, overrides over that; checked as one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from senri.conversion import load_preset, resolve_base
from senri.conversion.families import convert_config
from senri.conversion.loading import dequantised_folder
from senri.conversion.preset import Preset
from senri.models.configuration_senri import SenriConfig
from senri.models.hand_built import create_model
from senri.settings import apply_overrides, build, config_dir, find, load_yaml
from senri.training.config import ExperimentConfig, ModelConfig, Recipe, TrainingConfig

SECTIONS = ("model", "training", "experiment")
_FREE = ("changes",)  # sections whose names are not settings of the recipe


class ConfigManager:
    """All settings of a training run.

    Args:
        recipe: a name in `config/recipes`, or a YAML file with sections of `SECTIONS`; None for the defaults alone.
        overrides: words such as `training.batch_size=4`.
        folder: where model.yaml, training.yaml and experiment.yaml lie; Senri's own `config/` if None.

    Raises:
        SenriError: an unknown key (with the nearest known one), a missing one, or a wrong value.
    """

    def __init__(
        self, recipe: str | Path | None = None, overrides: Sequence[str] = (), folder: str | Path | None = None
    ) -> None:
        place = config_dir() if folder is None else Path(folder)
        values: dict[str, Any] = {section: load_yaml(place / f"{section}.yaml") for section in SECTIONS}
        self.name = "training"
        source = str(place)
        if recipe is not None:
            path = find(recipe, "recipes")
            self.name, source = path.stem, str(path)
            values = _merged(values, load_yaml(path))
        values = apply_overrides(values, overrides)
        self.recipe: Recipe = build(Recipe, values, " with ".join(filter(None, [source, " ".join(overrides)])))
        self.recipe.experiment.name = self.recipe.experiment.name or self.name

    @property
    def model(self) -> ModelConfig:
        """The section `model`."""
        return self.recipe.model

    @property
    def experiment(self) -> ExperimentConfig:
        """The section `experiment`."""
        return self.recipe.experiment

    @property
    def base_model_name(self) -> str | None:
        """What is converted: a Hub id, a folder or a GGUF file; None for a model that is not converted."""
        return self.to_preset().base if self.model.preset is not None else None

    @property
    def batch_size(self) -> int:
        """Sequences of one step, over all processes."""
        return self.recipe.training.batch_size

    @property
    def run_folder(self) -> Path:
        """Where the run keeps its results."""
        assert self.experiment.name is not None
        return self.experiment.out / self.experiment.name

    def to_training_config(self) -> TrainingConfig:
        """Return the section `training`."""
        return self.recipe.training

    def to_preset(self) -> Preset:
        """Return the preset with the recipe's changes.

        Raises:
            SenriError: the recipe names none, or one that cannot be.
        """
        assert self.model.preset is not None
        changes = dict(self.model.changes)
        if self.model.base_model_name is not None:
            changes["base"] = self.model.base_model_name
        return load_preset(self.model.preset, _words(changes))

    def to_senri_config(self) -> SenriConfig:
        """Return the configuration of the model that is trained; a base's weights are not loaded.

        Raises:
            SenriError: a base, preset or folder that cannot be found or read.
        """
        if self.model.folder is not None:
            config: SenriConfig = AutoConfig.from_pretrained(self.model.folder)
            return config
        if self.model.create is not None:
            return create_model(self.model.create, **self.model.changes).config
        preset = self.to_preset()
        resolved = resolve_base(preset.base)
        folder = dequantised_folder(resolved) if resolved.kind == "gguf" else resolved.path
        return convert_config(AutoConfig.from_pretrained(folder), preset, resolved.name)


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with those of `changes` in their places, section by section."""
    result = dict(values)
    for key, value in changes.items():
        inner = result.get(key)
        is_section = isinstance(inner, dict) and isinstance(value, dict) and key not in _FREE
        result[key] = _merged(inner, value) if is_section and isinstance(inner, dict) else value
    return result


def _words(changes: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the words of the command line that say the same as nested values."""
    words: list[str] = []
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            words += _words(value, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={json.dumps(value)}")
    return words
