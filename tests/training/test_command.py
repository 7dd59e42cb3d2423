"""`senri train` as a person types it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from senri.cli import main
from senri.models import SenriForCausalLM
from senri.training.callbacks import read_metrics
from senri.training.trainer import SenriTrainer

FULL_ONLY = ("training.stages.distill.enabled=false", "training.stages.memory.enabled=false")


def train(recipe: Path | str, *words: str) -> int:
    return main(["train", "--config", str(recipe), *words])


def test_it_trains_and_says_where_the_model_is(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(recipe_file) == 0
    said = capsys.readouterr().out
    folder = recipe_file.parent / "runs" / "recipe"
    assert f"the trained model is in {folder / 'model'}" in said.replace("\n", "")
    assert "Held-out perplexity" in said and "after full" in said
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder / "model"), SenriForCausalLM)
    assert {"report.html", "report.json", "loss.png", "metrics.jsonl", "config.yaml"} <= {
        p.name for p in folder.iterdir()
    }


def test_tensorboard_is_written_where_it_is_asked_for(recipe_file: Path) -> None:
    assert train(recipe_file, "experiment.report_to=[tensorboard]") == 0
    tracking = recipe_file.parent / "runs" / "recipe" / "tracking"
    assert {path.name for path in tracking.iterdir()} == {"distill", "memory", "full"}
    assert list(tracking.glob("memory/events.*"))


def test_ctrl_c_says_what_is_kept(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SenriTrainer.training_step
    sent: list[bool] = []

    def interrupted(self: SenriTrainer, *args: Any, **kwargs: Any) -> Any:
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SenriTrainer, "training_step", interrupted)
    assert train(recipe_file) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert train(recipe_file) == 0
    lines = read_metrics(recipe_file.parent / "runs" / "recipe" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] * 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("training.max_lenght=64", "did you mean 'max_length'"),
        ("training.max_length=8", "sliding_window is 8: a sequence must be longer"),
        ("experiment.data.train=nowhere", "nowhere"),
        ("training.batch_size=100000", "batch_size is 100000"),
        ("experiment.needles.format=nmaed", "did you mean 'named'"),
        ("model.base_model_name=nowhere/at-all.gguf", "nowhere/at-all.gguf"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    assert train(recipe_file, word) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("senri: error: ")]
    assert len(error) == 1 and message in error[0]
    assert not (recipe_file.parent / "runs" / "recipe" / "config.yaml").exists()


def test_after_a_mistake_the_right_words_are_taken(recipe_file: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.yaml"
    right = gate.read_text(encoding="utf-8")
    gate.write_text(right.replace("memory_layers:\n- 2", "memory_layers:\n- 1"), encoding="utf-8")
    assert train(recipe_file, *FULL_ONLY, "experiment.data.train=nowhere") == 2
    gate.write_text(right, encoding="utf-8")
    assert train(recipe_file, *FULL_ONLY, "training.stages.full.max_steps=1") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "recipe" / "model")
    assert model.config.memory_layers == [2]


def test_a_model_from_nothing(recipe_file: Path, base_folder: Path, text_folder: Path, tmp_path: Path) -> None:
    sizes = "{hidden_size: 32, num_heads: 2, intermediate_size: 64, vocab_size: 257}"
    words = [
        "model.create=infini",
        f"model.tokenizer={base_folder}",
        f"model.changes={sizes}",
        f"experiment.data.train={text_folder}",
        f"experiment.data.cache={tmp_path / 'cache'}",
        f"experiment.out={tmp_path / 'runs'}",
        "experiment.device=cpu",
        "experiment.report_to=[]",
        "experiment.data.held_out=[0.2,0.0]",
        "experiment.evaluation={documents: 1, tokens: 64, chunk_size: 16}",
        "training.batch_size=2",
        "training.max_length=32",
        "training.stages.full.max_steps=3",
    ]
    assert train("from_scratch", *words) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "from_scratch" / "model")
    assert model.config.memory_layers == [0] and model.config.eos_token_id == 256
    assert train("from_scratch", *words, "training.stages.distill.enabled=true", "experiment.name=other") == 2


def test_pairs_in_one_order(recipe_file: Path, tmp_path: Path) -> None:
    assert train(recipe_file, *FULL_ONLY, "experiment.name=start") == 0
    rows = [f"Person {i},the finder of river {i}" for i in range(40)]
    (tmp_path / "pairs.csv").write_text("\n".join(["person,description", *rows]), encoding="utf-8")
    words = [
        "model.preset=null",
        f"model.folder={tmp_path / 'runs' / 'start' / 'model'}",
        f"experiment.data.sentences.path={tmp_path / 'pairs.csv'}",
        f"experiment.out={tmp_path / 'runs'}",
        "experiment.device=cpu",
        "experiment.report_to=[]",
        "training.batch_size=2",
        "training.max_length=64",
        "training.stages.full.max_steps=20",
        "training.stages.full.learning_rate=3.0e-3",
    ]
    assert train("reversal", *words) == 0
    lines = read_metrics(tmp_path / "runs" / "reversal" / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]


def test_answers_alone(recipe_file: Path) -> None:
    words = [
        *("training.stages.distill.enabled=false", "training.stages.full.enabled=false"),
        "training.answers_only=true",
        "training.max_length=256",
        "training.stages.memory.max_steps=2",
        "experiment.needles={ratio: 0.5, values: [codes], needles: [1], format: training, question_context: 8}",
    ]
    assert train(recipe_file, *words) == 0
    lines = read_metrics(recipe_file.parent / "runs" / "recipe" / "metrics.jsonl")
    assert len(lines) == 2 and all(0 <= line["correct"] <= 1 for line in lines)
