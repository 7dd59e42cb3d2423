"""The loss recall: answers after a text that was only written, plain text held to the memory-less model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from senri.errors import SenriError
from senri.models import SenriForCausalLM
from senri.training import ConfigManager, ThreeStageTrainer
from senri.training.answers import AnswersOnly
from senri.training.callbacks import read_metrics
from senri.training.recall.config import LengthsConfig
from senri.training.recall.haystacks import HaystackBatches
from senri.training.recall.objective import Recall

from .conftest import RECALL_LAYER, recall_config, recall_recipe, stop_in_call
from .test_language_modelling import assert_same, gradients


def objective(model: SenriForCausalLM, batches: HaystackBatches) -> Recall:
    return Recall(model, 16, "full", False, RECALL_LAYER, kinds=batches.kinds, kl_weight=0.5)


def slow_loss(model: SenriForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each question alone, after the text was read by all layers from the memory on."""
    reader = AnswersOnly(model, 1000, "full", False, RECALL_LAYER, shortened=False)
    count = batch["ids"].shape[1]
    answers, divergences = [], []
    for row, targets in enumerate(batch["targets"]):
        memory = reader.read(batch["ids"], torch.tensor([count]), batch["states"])
        asked, positions = batch["asking"][row : row + 1], (count + torch.arange(len(targets)))[None]
        run = {"inputs_embeds": asked, "start_layer": RECALL_LAYER, "position_ids": positions}
        logits = model.lm_head(model.model(**run, past_key_values=memory, use_cache=True).last_hidden_state)[0]
        here = targets >= 0
        if batch["kinds"][row] >= 0:
            answers.append(F.cross_entropy(logits[here], targets[here]))
            continue
        with torch.no_grad(), model.memory_disabled():
            alone = model.lm_head(model.model(**run, use_cache=False).last_hidden_state)[0]
        mine, wanted = logits[here].log_softmax(-1), alone[here].log_softmax(-1)
        divergences.append((wanted.exp() * (wanted - mine)).sum(-1).mean())
    return torch.stack(answers).mean() + 0.5 * torch.stack(divergences).mean()


def test_the_loss_is_that_of_each_question_read_by_all_layers(haystacks: Any, recall_model: SenriForCausalLM) -> None:
    batches = haystacks()
    batch = batches([{"number": 0}])
    double = copy.deepcopy(recall_model).double()
    batch = {name: part.double() if part.is_floating_point() else part for name, part in batch.items()}
    found = objective(double, batches)(**batch)
    mine = gradients(double, found["loss"])
    wanted = slow_loss(double, batch)
    assert torch.isclose(found["loss"], wanted, rtol=1e-5), (found["loss"], wanted)
    assert_same(mine, gradients(double, wanted), 1e-4)
    assert found["length"] == batch["ids"].shape[1]
    by_kind = {batches.kinds[kind] for kind in batch["kinds"].tolist() if kind >= 0}
    assert {name.removeprefix("correct_") for name in found if name.startswith("correct_")} == by_kind


def test_plain_text_is_held_to_the_model_without_memory(haystacks: Any, recall_model: SenriForCausalLM) -> None:
    batches = haystacks()
    batch = batches([{"number": 0}])
    of_text = batch["kinds"] < 0
    only = batch | {name: batch[name][of_text] for name in ("asking", "targets", "points", "said", "kinds")}
    found = objective(recall_model, batches)(**only)
    assert "correct" not in found and found["divergence"] > 0
    assert torch.isclose(found["loss"], 0.5 * found["divergence"])
    torch.nn.init.zeros_(recall_model.model.layers[RECALL_LAYER].self_attn.memory_o_proj.weight)
    assert objective(recall_model, batches)(**only)["divergence"].abs() < 1e-6


def test_lengths_grow_from_step_to_step() -> None:
    lengths = LengthsConfig(100, 900, 2.0, 0.5)
    assert [lengths.at(step) for step in (0, 1, 3, 4, 10**6)] == [100, 200, 800, 900, 900]
    assert LengthsConfig(100, 900, 1.0, 0.5).at(10**6) == 100


def test_a_run_that_was_stopped_goes_on_with_the_same_texts(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recall_recipe(recipe_file)

    def run(name: str) -> list[tuple[float, float]]:
        outcome = ThreeStageTrainer(ConfigManager(recipe, [f"experiment.name={name}"])).train()
        return [(line["loss"], line["length"]) for line in read_metrics(outcome.folder / "metrics.jsonl")]

    whole = run("whole")
    stop_in_call(monkeypatch, Recall, 5)
    with pytest.raises(ZeroDivisionError):
        run("cut")
    monkeypatch.undo()
    assert run("cut") == whole and len(whole) == 6


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.recall=null", "training.recall says nothing"),
        ("training.recall.haystacks.facts=0", "facts is 0"),
        ("training.recall.haystacks.hidden=[]", "hidden is"),
        ("training.recall.haystacks.hidden=[0]", "numbers from 1 on"),
        ("training.recall.haystacks.styles=[]", "styles is empty"),
        ("training.recall.haystacks.alike_share=2", "0 to 1"),
        ("training.recall.haystacks.passage_width=9", "a passage has 16 tokens"),
        ("training.recall.finding.lengths.longest=10", "less than first"),
        ("training.recall.finding.lengths.growth=0.9", "growth is 0.9"),
        ("training.recall.finding.lengths.first=0", "first is 0"),
        ("training.recall.finding.lengths.shortest_share=0", "shortest_share is 0"),
        ("training.recall.finding.sharpness=0", "sharpness is 0"),
        ("training.recall.answering.kl_weight=-1", "kl_weight is -1"),
        ("training.stages.memory.train=mixers", "train memory"),
        ("training.stages.memory.max_steps=null", "set max_steps"),
    ],
)
def test_settings_that_cannot_be_are_named(recipe_file: Path, word: str, said: str) -> None:
    recipe = recall_recipe(recipe_file)
    with pytest.raises(SenriError, match=said):
        ConfigManager(recipe, [word])


def test_kinds_and_shares_may_be_zero_but_not_all_kinds() -> None:
    assert recall_config(alike_share=0, texts=0).haystacks.kinds
    for kinds in ({}, {"names": 0.0}, {"names": 1.0, "words": -1.0}):
        with pytest.raises(SenriError, match="kinds is"):
            recall_config(kinds=kinds)
