"""ThreeStageTrainer: distil the layers, train the memory, tune the whole; with held-out text measured in between.

A run lives in one folder. Whatever stops it (Ctrl-C, SIGTERM, kill -9, a full disk), the same command goes on: finished
stages are taken from their files, an unfinished one from its last whole checkpoint.
"""

import dataclasses
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import AutoTokenizer

from senri.conversion.output import write_folder
from senri.errors import SenriError
from senri.evaluation.files import make_folder, write_bytes
from senri.evaluation.processes import process_state
from senri.evaluation.report import versions
from senri.models.modeling_senri import SenriForCausalLM
from senri.settings import build, load_yaml, save_resolved
from senri.training.config import STAGES, Recipe, StageName
from senri.training.manager import ConfigManager
from senri.training.measures import Measures
from senri.training.parameters import memory_names
from senri.training.preparation import load_start, load_teacher, prepare_start
from senri.training.sequences import held_out_documents, training_rows
from senri.training.stage import Stage, StageResult, check_stages

CONFIG_FILE, RUN_FILE, METRICS_FILE, MEASURES_FILE = "config.yaml", "run.json", "metrics.jsonl", "measures.json"
START, MODEL, TRACKING = "start", "model", "tracking"
MEMORY_FILE = "memory.safetensors"
BASE, NO_MEMORY, BEFORE = "base", "memory off", "before training"


@dataclass
class TrainingOutcome:
    """What a run did.

    Attributes:
        folder: of the run; the trained model lies in its subfolder `model`.
        stages: results of the stages so far.
        perplexities: of held-out text, by what was measured.
        memory: how much each layer's memory takes part, by what was measured.
        finished: False after a stop.
    """

    folder: Path
    stages: list[StageResult] = field(default_factory=list)
    perplexities: dict[str, float] = field(default_factory=dict)
    memory: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    finished: bool = False


class ThreeStageTrainer:
    """Runs the stages of a recipe.

    Args:
        manager: the settings.
        command: the words that were typed, for the record.
        say: told in a sentence what happens.

    Raises:
        SenriError: the folder holds a run of other settings.
    """

    def __init__(
        self, manager: ConfigManager, command: Sequence[str] = (), say: Callable[[str], None] = lambda sentence: None
    ) -> None:
        self.manager, self.recipe, self.folder = manager, manager.recipe, manager.run_folder
        self.command = list(command)
        self._main = process_state().is_main_process
        self._say = say if self._main else lambda sentence: None
        self._check_folder()

    def train(self) -> TrainingOutcome:
        """Run all enabled stages that are not finished.

        Raises:
            SenriError: whatever the model, the data or a stage refuses.
        """
        outcome = TrainingOutcome(self.folder)
        training = self.recipe.training
        if self.recipe.experiment.data.sentences is None:
            config = self.manager.to_senri_config()
            training.check_window(config.sliding_window if config.memory_layers else None)
        self._say("preparing the model ...")
        if self._main and not self._stored.is_file():
            shutil.rmtree(self.folder / START, ignore_errors=True)  # of a run that was refused before it began
        prepare_start(self.manager, self.folder / START)
        model = self._model_after([])
        tokenizer = AutoTokenizer.from_pretrained(self.folder / START)
        check_stages(self.recipe, bool(model.model.memory_branches()))
        self._say("preparing the text ...")
        rows, identity = training_rows(self.recipe, tokenizer)
        documents = held_out_documents(self.recipe, tokenizer)
        teacher = self._teacher(model)
        self._record()
        measures = Measures(self.folder / MEASURES_FILE, documents, self.recipe.experiment.evaluation.chunk_size)
        self._measure_start(measures, model, teacher)
        finished: list[Stage] = []
        for name in training.stages.enabled:
            stage = Stage(name, self.recipe, self.folder / "stages" / name, self._metrics, self.folder / TRACKING)
            if not stage.is_finished:
                self._say(f"stage {name}: {len(rows):,} sequences of {training.max_length:,} tokens ...")
                if stage.emulates_bfloat16:
                    self._say("this processor has no bfloat16: training.precision=float32 is several times as fast.")
                result = stage.run(model, tokenizer, rows, identity, teacher if self._follows_base(name) else None)
                if not result.finished:
                    outcome.stages.append(result)
                    outcome.perplexities, outcome.memory = measures.perplexities, measures.memory
                    return outcome
            finished.append(stage)
            kept = stage.result
            assert kept is not None
            outcome.stages.append(kept)
            # From the files, as a run that goes on would: the trainer may have wrapped or spread the model.
            model = self._model_after(finished)
            measures.take(f"after {name}", model)
            self._say(f"stage {name}: loss {kept.loss:.4f} after {kept.steps:,} steps")
        self._write_model(model, tokenizer)
        outcome.perplexities, outcome.memory, outcome.finished = measures.perplexities, measures.memory, True
        return outcome

    def _model_after(self, stages: Sequence[Stage]) -> SenriForCausalLM:
        """Load the model as finished stages left it."""
        model = load_start(self.folder / START, self.recipe.training.gradient)
        for stage in stages:
            stage.load(model)
        if self.recipe.experiment.device != "cpu" and torch.accelerator.is_available():
            torch.nn.Module.to(model, process_state().device)
        return model

    @property
    def _metrics(self) -> Path:
        return self.folder / METRICS_FILE

    @property
    def _stored(self) -> Path:
        return self.folder / CONFIG_FILE

    def _check_folder(self) -> None:
        """Refuse a folder with a run of other settings."""
        if not self._stored.is_file():
            return
        before = build(Recipe, load_yaml(self._stored), str(self._stored))
        if (difference := _difference(before, self.recipe)) is not None:
            raise SenriError(
                f"{self.folder} holds a run with other settings ({difference}): go on with those, or name another "
                f"experiment.name."
            )

    def _record(self) -> None:
        """Keep what the run is made of, once all that it needs has been found."""
        process_state().wait_for_everyone()
        if not self._main or self._stored.is_file():
            return
        make_folder(self.folder)
        save_resolved(self.recipe, self._stored)
        record = {
            "command": self.command,
            "versions": versions(),
            "python": sys.version.split()[0],
            "machine": platform.platform(),
            "git_revision": _git_revision(),
        }
        write_bytes(self.folder / RUN_FILE, json.dumps(record, indent=2).encode())

    def _follows_base(self, name: StageName) -> bool:
        stage = getattr(self.recipe.training.stages, name)
        return bool(stage.enabled and (stage.loss == "distillation" or stage.kl_weight))

    def _teacher(self, model: SenriForCausalLM) -> Any:
        if self.manager.model.preset is None:
            for name in STAGES:
                if self._follows_base(name):
                    load_teacher(self.manager)  # says what is wrong
            return None
        return load_teacher(self.manager).to(model.device)

    def _measure_start(self, measures: Measures, model: SenriForCausalLM, teacher: Any) -> None:
        if teacher is not None:
            measures.take(BASE, teacher)
        measures.take(BEFORE, model)
        if model.model.memory_branches():
            with model.memory_disabled():
                measures.take(NO_MEMORY, model, memory=False)

    def _write_model(self, model: SenriForCausalLM, tokenizer: Any) -> None:
        if not self._main:
            return

        def fill(place: Path) -> None:
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)

        write_folder(self.folder / MODEL, fill)
        if model.model.memory_branches():
            parameters = dict(model.named_parameters())
            tensors = {name: parameters[name].detach().cpu() for name in memory_names(model)}
            write_bytes(self.folder / MEMORY_FILE, safetensors.torch.save(tensors))


def _difference(before: Recipe, now: Recipe) -> str | None:
    """Return the first setting that decides results and differs, or None."""
    places = {"experiment.out", "experiment.data.cache"}
    habits = {f"experiment.{name}" for name in ("report_to", "log_every", "save_every", "keep_checkpoints")}
    mine, theirs = _flat(dataclasses.asdict(now)), _flat(dataclasses.asdict(before))
    for key in sorted(mine.keys() | theirs.keys()):
        if key not in places | habits and mine.get(key) != theirs.get(key):
            return f"{key} {theirs.get(key)!r}, not {mine.get(key)!r}"
    return None


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {prefix.rstrip("."): values}
    return {key: value for name, inner in values.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def _git_revision() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
