"""A whole run: its stages, its files, and that whatever stops it, the same command goes on to the same losses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from senri.errors import SenriError
from senri.training import ConfigManager, ThreeStageTrainer, TrainingOutcome
from senri.training.callbacks import read_metrics
from senri.training.distillation import Distillation
from senri.training.language_modelling import LanguageModelling
from senri.training.run_report import write_run_report
from senri.training.trainer import TRAINED_FILE, SenriTrainer

from .conftest import write_recipe


def run(recipe: Path, *overrides: str) -> TrainingOutcome:
    return ThreeStageTrainer(ConfigManager(recipe, overrides)).train()


def losses(outcome: TrainingOutcome) -> list[tuple[str, int, float, float]]:
    lines = read_metrics(outcome.folder / "metrics.jsonl")
    return [(line["stage"], line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, text_folder: Path) -> TrainingOutcome:
    """Return a run that nothing stopped; its recipe lies two folders above its own."""
    return run(write_recipe(tmp_path_factory.mktemp("whole"), base_folder, text_folder))


def recipe_of(outcome: TrainingOutcome) -> Path:
    return outcome.folder.parents[1] / "recipe.yaml"


def test_a_run_trains_three_stages_and_leaves_a_model(whole: TrainingOutcome) -> None:
    assert whole.finished
    assert [(stage.name, stage.steps) for stage in whole.stages] == [("distill", 4), ("memory", 4), ("full", 4)]
    assert [line[:2] for line in losses(whole)] == [
        (stage, step) for stage in ("distill", "memory", "full") for step in (1, 2, 3, 4)
    ]
    assert list(whole.perplexities) == ["base", "before training", "memory off", *_after("distill", "memory", "full")]
    assert set(whole.memory["after full"][2]) == {"gate", "norm"}
    start = safetensors.torch.load_file(whole.folder / "start" / "model.safetensors")
    trained = safetensors.torch.load_file(whole.folder / "stages" / "memory" / TRAINED_FILE)
    assert trained.keys() == {name for name in start if name.startswith("model.layers.2.self_attn.")}
    model = AutoModelForCausalLM.from_pretrained(whole.folder / "model")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    moved = {name for name, tensor in model.state_dict().items() if name in start and not tensor.equal(start[name])}
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= moved
    page = write_run_report(whole, ConfigManager(recipe_of(whole)).recipe, ["senri", "train"])
    assert "after memory" in page.read_text() and (whole.folder / "loss.png").is_file()
    record = json.loads((whole.folder / "run.json").read_text())
    assert record["versions"]["torch"] == torch.__version__ and "git_revision" in record


def _after(*stages: str) -> list[str]:
    return [f"after {stage}" for stage in stages]


def test_the_stages_train_what_they_say(whole: TrainingOutcome) -> None:
    names = {
        stage: set(safetensors.torch.load_file(whole.folder / "stages" / stage / TRAINED_FILE))
        for stage in ("distill", "full")
    }
    assert "model.layers.2.self_attn.memory_gate.weight" in names["distill"]
    assert not any("mlp" in name or "layers.1." in name for name in names["distill"])
    assert names["full"] > names["distill"]


@pytest.mark.parametrize("objective", [Distillation, LanguageModelling])
def test_cut_off_at_any_step_the_same_losses_follow(
    whole: TrainingOutcome, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, objective: type
) -> None:
    monkeypatch.setattr(objective, "forward", _stops(objective, at=6))  # within the third step
    with pytest.raises(ZeroDivisionError):
        run(recipe_file)
    monkeypatch.undo()
    assert losses(run(recipe_file)) == losses(whole)


def _stops(objective: type, at: int) -> Any:
    forward: Any = objective.forward  # type: ignore[attr-defined]
    calls = iter(range(1, 1000))

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise ZeroDivisionError
        return forward(self, *args, **kwargs)

    return stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_in_order(
    whole: TrainingOutcome, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    step = SenriTrainer.training_step

    sent: list[int] = []

    def signalled(self: SenriTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SenriTrainer, "training_step", signalled)
    stopped = run(recipe_file)
    assert not stopped.finished and stopped.stages[0].steps == 3
    assert (stopped.folder / "stages" / "distill" / "checkpoint-3" / "whole").is_file()
    monkeypatch.undo()
    assert losses(run(recipe_file)) == losses(whole)


def test_killed_at_once_the_same_losses_follow(whole: TrainingOutcome, recipe_file: Path) -> None:
    script = f"""
import os, signal
from senri.training import ConfigManager, ThreeStageTrainer
from senri.training.trainer import SenriTrainer
step = SenriTrainer.training_step
def killed(self, *args, **kwargs):
    if self.stage.loss == "language_model" and self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
SenriTrainer.training_step = killed
ThreeStageTrainer(ConfigManager({str(recipe_file)!r})).train()
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert found.returncode == -signal.SIGKILL, found.stderr.decode()[-2000:]
    assert losses(run(recipe_file)) == losses(whole)


def test_a_loss_that_is_no_number_names_step_layer_and_checkpoint(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SenriTrainer.training_step

    def poisoned(self: SenriTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3 and self.stage.loss == "language_model":
            layers: Any = self.model.model.model.layers
            layers[3].mlp.up_proj.weight.data.fill_(float("nan"))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SenriTrainer, "training_step", poisoned)
    with pytest.raises(SenriError, match=r"loss is not a finite number at step 4, first in layer 3; .*checkpoint-2"):
        run(recipe_file)


def test_a_gradient_that_is_no_number_names_the_parameter(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SenriTrainer.training_step

    def poisoned(self: SenriTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = step(self, model, *args, **kwargs)
        next(p for n, p in model.named_parameters() if n.endswith("memory_gate.weight")).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(SenriTrainer, "training_step", poisoned)
    with pytest.raises(SenriError, match=r"gradient is not a finite number at step 1.*layers\.2\.self_attn\.memory_g"):
        run(recipe_file)


def test_a_full_disk_leaves_the_checkpoint_before(
    whole: TrainingOutcome, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = SenriTrainer._save_rng_state

    def full(self: SenriTrainer, folder: str) -> None:
        if folder.endswith("checkpoint-4"):
            raise OSError(28, "No space left on device")
        save(self, folder)

    monkeypatch.setattr(SenriTrainer, "_save_rng_state", full)
    with pytest.raises(SenriError, match=r"checkpoint-4 cannot be written \(No space left.*checkpoint-2 before it is"):
        run(recipe_file)
    monkeypatch.undo()
    assert not (recipe_file.parent / "runs" / "recipe" / "stages" / "distill" / "checkpoint-4").exists()
    assert losses(run(recipe_file)) == losses(whole)


def test_a_checkpoint_that_was_cut_off_is_passed_over(whole: TrainingOutcome, recipe_file: Path) -> None:
    stopped = run(recipe_file, "experiment.name=again")
    folder = stopped.folder / "stages" / "full"
    for name in (TRAINED_FILE, "stage.json", "checkpoint-4/whole"):
        (folder / name).unlink()
    assert losses(run(recipe_file, "experiment.name=again")) == losses(whole)


def test_a_finished_run_does_nothing(whole: TrainingOutcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SenriTrainer, "train", None)
    again = run(recipe_of(whole))
    assert again.finished and again.stages == whole.stages and again.perplexities == whole.perplexities


def test_other_settings_do_not_go_on_with_a_run(whole: TrainingOutcome, tmp_path: Path) -> None:
    with pytest.raises(SenriError, match=r"training\.batch_size 2, not 4.*experiment\.name"):
        run(recipe_of(whole), "training.batch_size=4")
    assert run(recipe_of(whole), "experiment.save_every=3", f"experiment.data.cache={tmp_path}").finished


def test_the_fast_path_and_the_plain_one_take_the_same_steps(whole: TrainingOutcome, recipe_file: Path) -> None:
    words = ("training.stages.distill.enabled=false", "training.stages.full.enabled=false")
    plain = run(recipe_file, *words, "training.frozen_base=false", "experiment.name=plain")
    fast = run(recipe_file, *words, "training.frozen_base_dtype=float32", "experiment.name=fast")
    assert (plain.stages[0].start_layer, fast.stages[0].start_layer) == (0, 2)
    half = run(recipe_file, *words, "experiment.name=half")
    for other, bound in ((fast, 1e-6), (half, 1e-3)):
        for mine, theirs in zip(losses(other), losses(plain), strict=True):
            assert mine[2] == pytest.approx(theirs[2], rel=bound)


@pytest.mark.parametrize(
    ("has_it", "precision", "is_said"),
    [(False, "bfloat16", True), (True, "bfloat16", False), (False, "float32", False)],
)
def test_a_processor_that_emulates_bfloat16_is_told(
    recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_it: bool,
    precision: str,
    is_said: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has_it, "amx_bf16": False})
    said = list[str]()
    words = [f"training.precision={precision}", "training.stages.memory.max_steps=1"]
    ThreeStageTrainer(ConfigManager(recipe_file, words), say=said.append).train()
    assert any("training.precision=float32 is several times as fast" in line for line in said) == is_said


def test_a_curriculum_cuts_sequences(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    forward = LanguageModelling.forward

    def noted(self: LanguageModelling, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(LanguageModelling, "forward", noted)
    words = ("training.stages.distill.enabled=false", "training.stages.full.enabled=false")
    run(recipe_file, *words, "training.curriculum=[8,32]")
    assert lengths == [8] * 4 + [32] * 4  # two sequences a step
