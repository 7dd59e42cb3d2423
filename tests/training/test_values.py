"""The loss values: each position is handed the next token's value and nothing else, and the start is solved."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml

from senri.errors import SenriError
from senri.models import SenriForCausalLM
from senri.training import ConfigManager, ThreeStageTrainer
from senri.training.callbacks import read_metrics
from senri.training.frozen_base import lower_states
from senri.training.parameters import choose_trained, trained_names
from senri.training.recall.config import ValuesConfig, WindowConfig
from senri.training.recall.values import Stretches, ValueDecoding
from senri.training.rows import TrainingRows

from .conftest import RECALL_LAYER as LAYER
from .conftest import RECALL_TEXT, recall_recipe, tiny_model


@pytest.fixture
def model(recall_model: SenriForCausalLM) -> SenriForCausalLM:
    choose_trained(recall_model, "values")
    return recall_model


@pytest.fixture
def rows(recall_rows: TrainingRows) -> TrainingRows:
    return recall_rows


def some(count: int, first: int = 0) -> list[dict[str, int]]:
    return [{"number": number} for number in range(first, first + count)]


CONFIG = ValuesConfig(
    **{"tokens": 40, "context": 8, "facts_share": 0.0, "interference": 0.0, "faintest": 1.0},
    **{"solve_batches": 8, "solve_context": 4, "ridge": 1e-3, "loudness": 4.0},
)


@pytest.fixture
def stretches(rows: TrainingRows, bytes_tokenizer: Any) -> Any:
    def build(seed: int = 0, **changes: Any) -> Stretches:
        config = dataclasses.replace(CONFIG, **changes)
        return Stretches(rows, bytes_tokenizer, config, WindowConfig(2, 7), {"words": 1.0, "names": 0.0}, seed)

    return build


def hidden_of(model: SenriForCausalLM, stretches: Any) -> torch.Tensor:
    """Return what enters the memory in two short stretches."""
    return model.model.layers[LAYER].input_layernorm(
        lower_states(model, stretches(context=0, tokens=12)(some(2))["ids"], LAYER, 100)
    )


def test_stretches_and_windows_are_of_the_text(rows: TrainingRows, stretches: Any) -> None:
    batch, flat = stretches(3)(some(6)), torch.cat(list(rows.tokens))
    assert batch["ids"].shape == (6, 48) and batch["window"].shape[0] == 1 and 2 <= batch["window"].shape[1] <= 7
    for ids in (*batch["ids"], batch["window"][0]):
        assert any(torch.equal(flat[at : at + len(ids)], ids) for at in range(len(flat) - len(ids)))
    assert torch.equal(stretches(3)(some(2, 4))["ids"], batch["ids"][4:])
    assert not torch.equal(stretches(4)(some(6))["ids"], batch["ids"])


def test_some_stretches_are_facts_behind_text(stretches: Any, rows: TrainingRows, bytes_tokenizer: Any) -> None:
    ids = stretches(facts_share=1.0, tokens=60)(some(4))["ids"]
    flat = torch.cat(list(rows.tokens))
    for own in ids:
        assert any(torch.equal(flat[at : at + 8], own[:8]) for at in range(len(flat) - 8))
        said = bytes_tokenizer.decode(own[8:])
        assert said.startswith(" ") and " " in said.strip() and said.strip() not in RECALL_TEXT
    both = stretches(facts_share=0.5, tokens=60)(some(40))["ids"]
    is_text = [any(torch.equal(flat[at : at + 68], own) for at in range(len(flat) - 68)) for own in both]
    assert 8 < sum(is_text) < 32


def test_the_rows_stretch_goes_over_their_borders(rows: TrainingRows) -> None:
    flat = torch.cat(list(rows.tokens))
    assert torch.equal(rows.stretch(250, 300), flat[250:550])
    assert rows.stretch(7, 0).tolist() == []


def test_what_is_found_is_what_a_memory_of_one_token_reads(model: SenriForCausalLM, stretches: Any) -> None:
    """The reference writes each token alone into an empty state and reads it with its own key."""
    hidden = hidden_of(model, stretches)
    branch: Any = model.model.layers[LAYER].self_attn.memory
    objective = ValueDecoding(model, LAYER, 0)
    objective._centre_values()
    found = objective.found(hidden)
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


def test_interference_adds_less_than_its_share_of_another_value(model: SenriForCausalLM, stretches: Any) -> None:
    hidden = hidden_of(model, stretches)
    clean = ValueDecoding(model, LAYER, 8).found(hidden)
    mixed = ValueDecoding(model, LAYER, 8, 0.3).found(hidden)
    faint = ValueDecoding(model, LAYER, 8, 0.0, 0.2).found(hidden)[:, :-1]
    assert F.cosine_similarity(clean[:, :-1], faint, dim=-1).min() > 1 - 1e-4
    assert ((faint.square().sum(-1) < clean[:, :-1].square().sum(-1)).float().mean()) > 0.9
    likeness = F.cosine_similarity(clean[:, :-1], mixed[:, :-1], dim=-1)
    assert (likeness < 1 - 1e-6).any() and likeness.mean() > 0.9


def untrained(model: SenriForCausalLM) -> Any:
    mixer: Any = model.model.layers[LAYER].self_attn
    torch.nn.init.zeros_(mixer.memory_o_proj.weight)
    return mixer


def test_the_solved_start_says_what_was_found(model: SenriForCausalLM, stretches: Any) -> None:
    mixer = untrained(model)
    objective, made = ValueDecoding(model, LAYER, 8), stretches()
    test = made(some(8, 100))
    before = objective(**test)
    objective.solve([made(some(8, first)) for first in range(0, 64, 8)], CONFIG, seed=0)
    after = objective(**test)
    assert after["correct"] > before["correct"] + 0.3, (before, after)
    states = lower_states(model, test["ids"], LAYER, 100)[:, 8:]
    added = mixer.memory_o_proj(objective._heard(states))[:, :-1]
    ratio = added.detach().square().mean().sqrt() / states.square().mean().sqrt()
    assert float(ratio) == pytest.approx(4.0, rel=0.1)
    solved = [parameter.clone() for parameter in model.parameters()]
    objective.solve([made(some(8))], dataclasses.replace(CONFIG, loudness=1.0), seed=1)  # what has learnt stays
    assert all(torch.equal(mine, kept) for mine, kept in zip(model.parameters(), solved, strict=True))


def test_values_are_centred_whatever_is_trained(model: SenriForCausalLM, rows: TrainingRows, stretches: Any) -> None:
    objective, made = ValueDecoding(model, LAYER, 8), stretches()
    objective.solve([made(some(8, first)) for first in range(0, 64, 8)], CONFIG, seed=0)
    inputs: Any = model.model.layers[LAYER].self_attn.memory.inputs
    with torch.no_grad():
        inputs.v_proj.weight.normal_()
    loss = objective(**made(some(8)))["loss"]
    text = torch.cat([rows.frozen_base[row] for row in range(5)])  # type: ignore[index]
    values = inputs.v_proj(model.model.layers[LAYER].input_layernorm(text))
    assert values.mean(0).square().mean() < 0.1 * values.square().mean()
    # The gradient is that of values less their mean: the same for weights that only move the mean.
    loss.backward()
    along = (inputs.v_proj.weight.grad @ objective.mean).norm() / objective.mean.norm()
    assert along < 0.7 * inputs.v_proj.weight.grad.norm()


def test_solved_queries_find_the_states_of_the_text(
    model: SenriForCausalLM, rows: TrainingRows, stretches: Any
) -> None:
    """A passage that is asked for by its own tokens alone, among 200 tokens that were read in one go."""

    def found_again() -> float:
        branch: Any = model.model.layers[LAYER].self_attn.memory
        norm, start = model.model.layers[LAYER].input_layernorm, 700
        text = torch.cat([rows.frozen_base[row] for row in range(5)])[start : start + 200]  # type: ignore[index]
        own = lower_states(model, rows.stretch(start + 100, 30)[None], LAYER, 100)
        keys = branch.inputs(norm(text[None]), branch.init_state(1))[0].k[0, :, 1:]  # a key is of the token before
        queries = branch.inputs(norm(own), branch.init_state(1))[0].q[0, ::2]
        scores = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-1, -2)
        said = rows.stretch(start + 1, 200)[scores.argmax(-1)]  # the text repeats itself, so places alone do not count
        return float((said == rows.stretch(start + 101, 30))[:, 8:].float().mean())

    untrained(model)
    objective, made = ValueDecoding(model, LAYER, 8), stretches()
    before = found_again()
    objective.solve([made(some(8, first)) for first in range(0, 64, 8)], CONFIG, seed=0)
    assert found_again() > max(before, 0.8), (before, found_again())


def test_only_values_are_trained_and_no_key_or_write_matters(model: SenriForCausalLM, stretches: Any) -> None:
    prefix = f"model.layers.{LAYER}.self_attn."
    assert {name.removeprefix(prefix) for name in trained_names(model)} == {
        *(f"memory.inputs.{name}_proj.{kind}" for name in "qk" for kind in ("weight", "bias")),
        *("memory.inputs.v_proj.weight", "memory.inputs.v_proj.bias"),
        *("memory.memory.norm_weight", "memory_o_proj.weight"),
    }
    objective, batch = ValueDecoding(model, LAYER, 8), stretches(tokens=20)(some(4))
    loss = objective(**batch)["loss"]
    loss.backward()
    with_gradient = {name.removeprefix(prefix) for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"memory.inputs.v_proj.weight", "memory.memory.norm_weight", "memory_o_proj.weight"}
    inputs: Any = model.model.layers[LAYER].self_attn.memory.inputs
    with torch.no_grad():
        inputs.k_proj.weight.normal_()
        inputs.q_proj.weight.normal_()
        inputs.beta_proj.bias.fill_(-20.0)
        model.model.layers[LAYER].self_attn.memory_read.proj.bias.fill_(-20.0)  # as silent as in plain text
    assert torch.equal(objective(**batch)["loss"], loss)


def test_a_memory_of_another_kind_is_refused() -> None:
    for model in (tiny_model("gate", (2,)), tiny_model("add", (2, 3))):
        with pytest.raises(SenriError, match="another kind in its layers"):
            ValueDecoding(model, 2, 0)


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
    assert outcome.stages[0].tokens == 5 * 3 * 96
    # What a preset's `trained` takes: all that the run's model knows more than its base.
    kept = safetensors.torch.load_file(outcome.folder / "memory.safetensors")
    model = SenriForCausalLM.from_pretrained(outcome.folder / "model")
    own = {name: p for name, p in model.named_parameters() if ".self_attn.memory" in name}
    assert kept.keys() == own.keys() and all(torch.equal(kept[name], own[name]) for name in own)
    # One store of the frozen layers' outputs for both.
    assert len([*outcome.folder.glob("stages/*/states.npy")]) == 1
    for word, message in (
        ("training.stages.distill.train=memory", "train values"),
        ("training.stages.distill.max_steps=null", "set max_steps"),
        ("training.recall.values.tokens=1", "at least 2"),
        ("training.recall.values.ridge=0", "above 0"),
        ("training.recall.values.faintest=0", "above 0 and at most 1"),
        ("training.recall.values.solve_context=96", "a stretch has 96 tokens"),
        ("training.recall.values.facts_share=2", "0 to 1"),
    ):
        with pytest.raises(SenriError, match=message):
            ConfigManager(path, [word])
    for number, (word, message) in enumerate(
        (
            ("training.recall.values.tokens=1000000", "too few for the 1000064"),
            ("training.recall.window.longest=8", "sliding window has 8 tokens"),
            ("training.frozen_base=false", "frozen_base=true"),
        )
    ):
        with pytest.raises(SenriError, match=message):
            ThreeStageTrainer(ConfigManager(path, [word, f"experiment.name=wrong-{number}"])).train()
