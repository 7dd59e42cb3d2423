"""The loss values: each position is handed the next token's value and nothing else, and the start is solved."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from senri.errors import SenriError
from senri.models import SenriForCausalLM
from senri.training import ConfigManager, ThreeStageTrainer
from senri.training.callbacks import read_metrics
from senri.training.parameters import choose_trained, trained_names
from senri.training.recall.config import ValuesConfig
from senri.training.recall.values import Stretches, ValueDecoding
from senri.training.rows import TrainingRows

from .conftest import RECALL_LAYER as LAYER
from .conftest import recall_recipe, tiny_model


@pytest.fixture
def model(recall_model: SenriForCausalLM) -> SenriForCausalLM:
    choose_trained(recall_model, "values")
    return recall_model


@pytest.fixture
def rows(recall_rows: TrainingRows) -> TrainingRows:
    return recall_rows


def some(count: int, first: int = 0) -> list[dict[str, int]]:
    return [{"number": number} for number in range(first, first + count)]


def test_stretches_are_the_text_and_its_states(rows: TrainingRows) -> None:
    batch = Stretches(rows, 40, seed=3)(some(6))
    flat, states = torch.cat(list(rows.tokens)), torch.cat([rows.frozen_base[row] for row in range(5)])  # type: ignore[index]
    for ids, own in zip(batch["ids"], batch["states"], strict=True):
        (place,) = (at for at in range(len(flat) - 39) if torch.equal(own, states[at : at + 40]))
        assert torch.equal(flat[place : place + 40], ids)
    assert torch.equal(Stretches(rows, 40, seed=3)(some(2, 4))["ids"], batch["ids"][4:])
    assert not torch.equal(Stretches(rows, 40, seed=4)(some(6))["ids"], batch["ids"])


def test_the_rows_stretch_goes_over_their_borders(rows: TrainingRows) -> None:
    flat = torch.cat(list(rows.tokens))
    assert torch.equal(rows.stretch(250, 300), flat[250:550])
    assert rows.stretch(7, 0).tolist() == []


def test_what_is_found_is_what_a_memory_of_one_token_reads(model: SenriForCausalLM, rows: TrainingRows) -> None:
    """The reference writes each token alone into an empty state and reads it with its own key."""
    states = Stretches(rows, 12, seed=0)(some(2))["states"]
    hidden = model.model.layers[LAYER].input_layernorm(states)
    branch: Any = model.model.layers[LAYER].self_attn.memory
    found = ValueDecoding(model, LAYER, interference=0.0).found(hidden)
    tokens, _ = branch.inputs(hidden, branch.init_state(2))
    for place in range(11):
        one = slice(place + 1, place + 2)
        state = branch.memory.init_state(2)
        kept = branch.memory.write(tokens.k[:, :, one], tokens.v[:, :, one], state, tokens.beta[:, :, one], None)
        key = tokens.k[:, :, one].repeat_interleave(branch.num_heads // branch.num_key_value_heads, dim=1)
        read = branch.memory.read(key, kept)
        # Equal but for its size: what was written is a share of the value.
        assert (F.cosine_similarity(found[:, place], read[:, :, 0], dim=-1) > 1 - 1e-5).all(), place
    assert not found[:, -1].any()


def test_interference_adds_less_than_its_share_of_another_value(model: SenriForCausalLM, rows: TrainingRows) -> None:
    hidden = model.model.layers[LAYER].input_layernorm(Stretches(rows, 12, seed=0)(some(2))["states"])
    clean = ValueDecoding(model, LAYER, 0.0).found(hidden)
    mixed = ValueDecoding(model, LAYER, 0.3).found(hidden)
    faint = ValueDecoding(model, LAYER, 0.0, 0.2).found(hidden)[:, :-1]
    assert F.cosine_similarity(clean[:, :-1], faint, dim=-1).min() > 1 - 1e-4
    assert ((faint.square().sum(-1) < clean[:, :-1].square().sum(-1)).float().mean()) > 0.9
    likeness = F.cosine_similarity(clean[:, :-1], mixed[:, :-1], dim=-1)
    assert (likeness < 1 - 1e-6).any() and likeness.mean() > 0.9


CONFIG = ValuesConfig(
    tokens=40, interference=0.0, faintest=1.0, solve_batches=8, solve_context=4, ridge=1e-3, loudness=4.0
)


def untrained(model: SenriForCausalLM) -> Any:
    mixer: Any = model.model.layers[LAYER].self_attn
    torch.nn.init.zeros_(mixer.memory_o_proj.weight)
    return mixer


def test_the_solved_start_says_what_was_found(model: SenriForCausalLM, rows: TrainingRows) -> None:
    mixer = untrained(model)
    objective, stretches = ValueDecoding(model, LAYER, 0.0), Stretches(rows, 40, seed=0)
    test = stretches(some(8, 100))
    before = objective(**test)
    objective.solve([stretches(some(8, first)) for first in range(0, 64, 8)], CONFIG, seed=0)
    after = objective(**test)
    assert after["correct"] > before["correct"] + 0.3, (before, after)
    heard = objective._heard(test["states"], objective._asking(test["ids"]))
    added, states = mixer.memory_o_proj(heard)[:, :-1], test["states"]
    ratio = added.detach().square().mean().sqrt() / states.square().mean().sqrt()
    assert float(ratio) == pytest.approx(4.0, rel=0.1)
    solved = [parameter.clone() for parameter in model.parameters()]
    objective.solve([stretches(some(8))], dataclasses.replace(CONFIG, loudness=1.0), seed=1)  # what has learnt stays
    assert all(torch.equal(mine, kept) for mine, kept in zip(model.parameters(), solved, strict=True))


def test_solved_queries_find_the_states_of_the_text(model: SenriForCausalLM, rows: TrainingRows) -> None:
    """A passage that is asked for by its own tokens alone, among 200 tokens that were read in one go."""

    def found_again() -> float:
        branch: Any = model.model.layers[LAYER].self_attn.memory
        norm, start = model.model.layers[LAYER].input_layernorm, 700
        text = torch.cat([rows.frozen_base[row] for row in range(5)])[start : start + 200]  # type: ignore[index]
        own = objective._asking(rows.stretch(start + 100, 30)[None])
        keys = branch.inputs(norm(text[None]), branch.init_state(1))[0].k[0, :, 1:]  # a key is of the token before
        queries = branch.inputs(norm(own), branch.init_state(1))[0].q[0, ::2]
        scores = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-1, -2)
        said = rows.stretch(start + 1, 200)[scores.argmax(-1)]  # the text repeats itself, so places alone do not count
        return float((said == rows.stretch(start + 101, 30))[:, 8:].float().mean())

    untrained(model)
    objective, stretches = ValueDecoding(model, LAYER, 0.0), Stretches(rows, 40, seed=0)
    before = found_again()
    objective.solve([stretches(some(8, first)) for first in range(0, 64, 8)], CONFIG, seed=0)
    assert found_again() > max(before, 0.8), (before, found_again())


def test_only_values_are_trained_and_no_key_or_write_matters(model: SenriForCausalLM, rows: TrainingRows) -> None:
    prefix = f"model.layers.{LAYER}.self_attn."
    assert {name.removeprefix(prefix) for name in trained_names(model)} == {
        *(f"memory.inputs.{name}_proj.{kind}" for name in "qk" for kind in ("weight", "bias")),
        *("memory.inputs.v_proj.weight", "memory.inputs.v_proj.bias"),
        *("memory.memory.norm_weight", "memory_o_proj.weight"),
    }
    objective, batch = ValueDecoding(model, LAYER, 0.0), Stretches(rows, 20, seed=0)(some(4))
    loss = objective(**batch)["loss"]
    loss.backward()
    with_gradient = {name.removeprefix(prefix) for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {
        *("memory.inputs.v_proj.weight", "memory.inputs.v_proj.bias"),
        *("memory.memory.norm_weight", "memory_o_proj.weight"),
    }
    inputs: Any = model.model.layers[LAYER].self_attn.memory.inputs
    with torch.no_grad():
        inputs.k_proj.weight.normal_()
        inputs.q_proj.weight.normal_()
        inputs.beta_proj.bias.fill_(-20.0)
    assert torch.equal(objective(**batch)["loss"], loss)


def test_a_memory_of_another_kind_is_refused() -> None:
    for model in (tiny_model("gate", (2,)), tiny_model("add", (2, 3))):
        with pytest.raises(SenriError, match="another kind in its layers"):
            ValueDecoding(model, 2, 0.0)


def test_the_recipe_says_first_and_finds_then(recipe_file: Path) -> None:
    path = recall_recipe(recipe_file)
    recipe = yaml.safe_load(path.read_text())
    recipe["training"]["stages"]["distill"] = {
        **{"enabled": True, "loss": "values", "train": "values"},
        **{"max_steps": 5, "learning_rate": 5.0e-3},
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    outcome = ThreeStageTrainer(ConfigManager(path)).train()
    assert outcome.finished and [stage.name for stage in outcome.stages] == ["distill", "memory"]
    lines = read_metrics(outcome.folder / "metrics.jsonl")
    assert [line["stage"] for line in lines].count("distill") == 5
    assert outcome.stages[0].tokens == 5 * 3 * 48
    # One store of the frozen layers' outputs for both.
    assert len([*outcome.folder.glob("stages/*/states.npy")]) == 1
    for word, message in (
        ("training.stages.distill.train=memory", "train values"),
        ("training.stages.distill.max_steps=null", "set max_steps"),
        ("training.recall.values.tokens=1", "at least 2"),
        ("training.recall.values.ridge=0", "above 0"),
        ("training.recall.values.faintest=0", "above 0 and at most 1"),
        ("training.recall.values.solve_context=48", "a stretch has 48 tokens"),
    ):
        with pytest.raises(SenriError, match=message):
            ConfigManager(path, [word])
    with pytest.raises(SenriError, match="shorter than training.recall.values.tokens"):
        ThreeStageTrainer(
            ConfigManager(path, ["training.recall.values.tokens=1000000", "experiment.name=long"])
        ).train()
    with pytest.raises(SenriError, match="frozen_base=true"):
        ThreeStageTrainer(ConfigManager(path, ["training.frozen_base=false", "experiment.name=plain"])).train()
