"""scripts/colab.py: one word does it all, and whatever is wrong is one sentence."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import senri.cli
from senri.errors import SenriError
from senri.evaluation import EvaluationSettings
from senri.settings import load_settings
from senri.training import ConfigManager

SCRIPT = Path(__file__).parents[1] / "scripts" / "colab.py"


@pytest.fixture
def colab(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("colab_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "colab_script", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the command lines that are run instead of run."""
    lines: list[list[str]] = []

    def note(words: list[str]) -> int:
        lines.append(words)
        return 0

    monkeypatch.setattr(senri.cli, "main", note)
    return lines


def settings_of(colab: ModuleType, drive: Path) -> Any:
    return load_settings(colab.ColabSettings, "colab", [f"drive={drive}"])


@pytest.mark.parametrize(
    ("words", "said"), [([], "none was given"), (["tset"], "'tset'"), (["train", "x=1"], "'train x=1'")]
)
def test_a_wrong_word_is_one_sentence(words: list[str], said: str, tmp_path: Path) -> None:
    found = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 2 and not found.stdout
    assert found.stderr.startswith("colab: error: ") and found.stderr.count("\n") == 1
    assert said in found.stderr and "train, eval or test" in found.stderr


def test_training_goes_to_drive_where_it_is_mounted(colab: ModuleType, typed: list[list[str]], tmp_path: Path) -> None:
    assert colab.train(settings_of(colab, tmp_path)) == 0
    assert typed[0][:3] == ["train", "--config", "smollm_infini"]
    manager = ConfigManager(typed[0][2], typed[0][3:])
    assert manager.run_folder == tmp_path / "senri" / "smollm_infini"
    assert manager.experiment.data.train == "pg19"


def test_training_without_drive_goes_to_the_folder_at_hand(
    colab: ModuleType, typed: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colab.train(settings_of(colab, tmp_path / "missing"))
    assert ConfigManager(typed[0][2], typed[0][3:]).run_folder == Path("runs/smollm_infini")
    assert "not mounted" in capsys.readouterr().out


def test_the_trained_model_is_measured(colab: ModuleType, typed: list[list[str]], tmp_path: Path) -> None:
    settings = settings_of(colab, tmp_path)
    with pytest.raises(SenriError, match=r"no trained model at .*colab\.py train"):
        colab.evaluate(settings)
    model = tmp_path / "senri" / "smollm_infini" / "model"
    model.mkdir(parents=True)
    assert colab.evaluate(settings) == 0
    assert typed[0][:4] == ["eval", "suite", "--model", str(model)]
    assert typed[0][typed[0].index("--out") + 1] == str(tmp_path / "senri" / "results")
    load_settings(EvaluationSettings, "evaluation", settings.eval)  # refuses words that are none


def test_an_error_of_senri_is_one_sentence(
    colab: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert colab.run(["eval"]) == 2
    assert capsys.readouterr().err.startswith("colab: error: there is no trained model at runs/smollm_infini/model")


@pytest.mark.parametrize("status", [0, 1])
def test_senri_is_installed_where_it_is_missing(
    colab: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    calls: list[list[str]] = []
    find = importlib.util.find_spec

    def pip(command: list[str]) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(colab.importlib.util, "find_spec", lambda name: find(name) if calls and not status else None)
    monkeypatch.setattr(colab.subprocess, "run", pip)
    monkeypatch.setitem(colab.WORDS, "train", lambda settings: 0)
    assert colab.run(["train"]) == (2 if status else 0)
    assert calls == [[sys.executable, "-m", "pip", "install", "--quiet", "-e", f"{SCRIPT.parents[1]}[train,eval]"]]
    said = capsys.readouterr()
    assert "not installed" in said.out
    assert ("could not be installed" in said.err) == bool(status)


def test_the_check_says_what_is_not_well(
    colab: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(colab, tmp_path)
    monkeypatch.setattr(senri.cli, "main", lambda words: 2)
    assert colab.test(settings) == 1
    assert "not well: training stopped with an error" in capsys.readouterr().out

    def broken(words: list[str]) -> int:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(senri.cli, "main", broken)
    assert colab.test(settings) == 1
    said = capsys.readouterr().out
    assert "not well: RuntimeError: no kernel image is available" in said and "all is well" not in said


def test_training_that_did_not_help_is_not_well(colab: ModuleType, tmp_path: Path) -> None:
    measures = tmp_path / "measures.json"
    for after, problems in (("9.0", 0), ("11.0", 1), ("NaN", 1)):
        measures.write_text(f'{{"perplexities": {{"before training": 10.0, "after full": {after}}}}}')
        assert len(colab._of_training(tmp_path)) == problems


@pytest.mark.slow
def test_the_check_from_end_to_end(tmp_path: Path) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    surroundings = os.environ | {"HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, "test"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=here, env=surroundings)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1].startswith("all is well")
    assert all(part in found.stdout for part in ("after full", "perplexity-tiny", "needle-tiny", "memory-tiny"))
    assert not any(here.iterdir()) and not any(temporary.iterdir())  # it clears away what it made
