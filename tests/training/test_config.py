"""Recipes: what is not said comes from config/, what is wrong is one sentence."""

from pathlib import Path

import pytest
import yaml

from senri.errors import SenriError
from senri.settings import config_dir, load_settings
from senri.training import ConfigManager
from senri.training.config import Recipe
from senri.training.stage import check_stages

NEEDED = {
    "from_scratch": ["experiment.data.train=books", "model.tokenizer=tokenizer.json"],
    "reversal": ["experiment.data.sentences.path=pairs.csv"],
}
"""What a recipe leaves to the person who runs it; the others need a text alone."""
RECIPES = sorted(path.stem for path in (config_dir() / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_built(name: str) -> None:
    manager = ConfigManager(name, NEEDED.get(name, ["experiment.data.train=books"]))
    assert manager.experiment.name == name
    check_stages(manager.recipe, has_memory=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm_infini", "experiment.data.train must name the text"),
        ("from_scratch", "name one as model.tokenizer"),
        ("reversal", "experiment.data.sentences.path must name the pairs"),
    ],
)
def test_what_must_be_named_is_asked_for(name: str, message: str) -> None:
    with pytest.raises(SenriError) as caught:
        ConfigManager(name)
    assert message in str(caught.value)


def test_what_a_recipe_does_not_say_is_the_default(recipe_file: Path) -> None:
    manager = ConfigManager(recipe_file, ["training.weight_decay=0.5"])
    training = manager.to_training_config()
    defaults = yaml.safe_load((config_dir() / "training.yaml").read_text())
    assert (
        training.betas == defaults["betas"] and training.stages.memory.epochs == defaults["stages"]["memory"]["epochs"]
    )
    assert (manager.batch_size, training.weight_decay) == (2, 0.5)
    assert manager.base_model_name is not None and Path(manager.base_model_name).is_dir()


def test_the_issue_defaults_of_the_stages() -> None:
    stages = ConfigManager("smollm_infini", ["experiment.data.train=books"]).to_training_config().stages
    wanted = {"distill": (1, 1e-4), "memory": (2, 5e-5), "full": (1, 1e-5)}
    for name, (epochs, rate) in wanted.items():
        stage = getattr(stages, name)
        assert stage.enabled and (stage.epochs, stage.learning_rate) == (epochs, rate)


def test_the_model_has_the_recipe_s_changes(recipe_file: Path) -> None:
    words = ["model.changes={memory: {gate_init: -1.5}, memory_layers: [1, 3]}"]
    config = ConfigManager(recipe_file, words).to_senri_config()
    assert config.memory_layers == [1, 3] and config.memory_config.gate_init == -1.5
    assert config.memory_config.segment_length == 4  # of the preset


def test_a_model_from_nothing_is_described_without_being_asked_for_a_base() -> None:
    words = ["model.preset=null", "model.create=infini", "model.tokenizer=t", "model.changes={hidden_size: 64}"]
    manager = ConfigManager("smollm_infini", [*words, "experiment.data.train=books"])
    assert manager.to_senri_config().hidden_size == 64 and manager.base_model_name is None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("training.batchsize=4", "'training.batchsize': did you mean 'batch_size'"),
        ("training.stages.memory.learning_rat=1", "did you mean 'learning_rate'"),
        ("training.batch_size=three", "'training.batch_size' is 'three'"),
        ("training.micro_batch_size=4", "multiple of micro_batch_size 4"),
        ("training.curriculum=[64]", "lengths are from 2 to 32"),
        ("training.stages.distill.train=all", "loss distillation trains mixers"),
        ("experiment.data.train=null", "must name the text to train on"),
        ("experiment.data.held_out=[0.6, 0.5]", "two shares"),
        ("experiment.needles.ratio=2", "a share, 0 to 1"),
        ("experiment.keep_checkpoints=1", "at least 2"),
        ("model.create=infini", "preset and create"),
        ("model.tokenizer=t", "brings its own"),
        ("model.preset=null", "none of them"),
    ],
)
def test_what_is_wrong_is_named(recipe_file: Path, word: str, message: str) -> None:
    with pytest.raises(SenriError) as caught:
        ConfigManager(recipe_file, [word])
    assert message in str(caught.value)


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(SenriError, match=r"no recipe named 'smollm_infin'.*did you mean 'smollm_infini'"):
        ConfigManager("smollm_infin")


def test_sequences_must_be_longer_than_the_window(recipe_file: Path) -> None:
    training = ConfigManager(recipe_file).to_training_config()
    training.check_window(31)
    training.check_window(None)
    with pytest.raises(SenriError, match="max_length is 32, but the model's sliding_window is 32"):
        training.check_window(32)


def test_steps_must_be_shared_out_evenly(recipe_file: Path) -> None:
    training = ConfigManager(recipe_file).to_training_config()
    training.check_processes(2)
    with pytest.raises(SenriError, match="3 processes.*multiple of 3"):
        training.check_processes(3)


def test_stages_must_fit_the_model(recipe_file: Path) -> None:
    recipe = ConfigManager(recipe_file).recipe
    with pytest.raises(SenriError, match="distill trains memories, but the model has none"):
        check_stages(recipe, has_memory=False)
    names = ("distill", "memory", "full")
    off = ConfigManager(recipe_file, [f"training.stages.{name}.enabled=false" for name in names]).recipe
    with pytest.raises(SenriError, match="no stage is enabled"):
        check_stages(off, has_memory=True)


def test_a_saved_recipe_is_read_back_the_same(recipe_file: Path, tmp_path: Path) -> None:
    from senri.settings import save_resolved

    recipe = ConfigManager(recipe_file).recipe
    save_resolved(recipe, tmp_path / "saved.yaml")
    assert load_settings(Recipe, tmp_path / "saved.yaml") == recipe
