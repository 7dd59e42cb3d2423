"""The loss recall: answers after a text that was only written, plain text held to the memory-less model."""

import copy
import re
import sysconfig
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
from senri.training.recall.batches import RecallBatches
from senri.training.recall.config import LengthsConfig
from senri.training.recall.objective import Recall
from senri.training.recall.window import Window
from senri.training.rows import TrainingRows
from senri.training.sequences import training_rows

from .conftest import RECALL_LAYER, recall_config, recall_recipe, stop_in_call
from .test_language_modelling import assert_same, gradients


def objective(model: SenriForCausalLM, batches: RecallBatches) -> Recall:
    return Recall(model, 16, "full", False, RECALL_LAYER, kinds=batches.kinds, first_weight=2.5, kl_weight=0.5)


def slow_loss(model: SenriForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each question in one run with its window, after the text before that was read by all layers from the memory on.

    What the memory adds within the window is not learnt from.
    """
    reader = AnswersOnly(model, 1000, "full", False, RECALL_LAYER, shortened=False)
    near, first = int(batch["window"]), model.config.sliding_window
    far = batch["ids"].shape[1] - near
    window, states = batch["ids"][:, far:], batch["states"][:, far:]
    projection = model.model.layers[RECALL_LAYER].self_attn.memory_o_proj

    def run(tail: torch.Tensor, memory: Any) -> torch.Tensor:
        """Log-probabilities behind the window, `[tail, vocabulary]`."""
        both = torch.cat([states, tail], dim=1)
        run = {"inputs_embeds": both, "start_layer": RECALL_LAYER, "use_cache": True}
        positions = first + torch.arange(both.shape[1])[None]
        fixed = projection.register_forward_hook(
            lambda _module, _args, out: torch.cat([out[:, :near].detach(), out[:, near:]], dim=1)
        )
        hidden = model.model(**run, position_ids=positions, past_key_values=memory).last_hidden_state
        fixed.remove()
        return model.lm_head(hidden)[0, near:].log_softmax(-1)

    def read() -> Any:
        return reader.read(batch["ids"][:, :far], torch.tensor([far]), batch["states"][:, :far])

    answers, weights = [], 0.0
    for question, targets in zip(batch["questions"], batch["targets"], strict=True):
        ids = torch.cat([window, question[None]], dim=1)
        positions = first + torch.arange(ids.shape[1])[None]
        with torch.no_grad():
            lower = model.model(ids, position_ids=positions, stop_layer=RECALL_LAYER, use_cache=True)
        said, here = run(lower.last_hidden_state[:, near:], read()), targets >= 0
        begun, *others = F.nll_loss(said[here], targets[here], reduction="none")
        answers.append(2.5 * begun + sum(others))
        weights += 2.5 + len(others)
    with torch.no_grad(), model.memory_disabled():
        alone = run(batch["going_on"], None)
    mine = run(batch["going_on"], read())
    divergence = (alone.exp() * (alone - mine)).sum(-1).mean()
    return torch.stack(answers).sum() / weights + 0.5 * divergence


def test_the_loss_is_that_of_each_question_read_by_all_layers(
    recall_batches: Any, recall_model: SenriForCausalLM
) -> None:
    batches = recall_batches()
    batch = batches([{"number": 0}])
    double = copy.deepcopy(recall_model).double()
    batch = {name: part.double() if part.is_floating_point() else part for name, part in batch.items()}
    found = objective(double, batches)(**batch)
    mine = gradients(double, found["loss"])
    wanted = slow_loss(double, batch)
    assert torch.isclose(found["loss"].double(), wanted, rtol=1e-5), (found["loss"], wanted)
    assert_same(mine, gradients(double, wanted), 1e-4)
    assert found["length"] == batch["ids"].shape[1]
    by_kind = {batches.kinds[kind] for kind in batch["kinds"].tolist()}
    assert {name.removeprefix("correct_") for name in found if name.startswith("correct_")} == by_kind


def test_plain_text_is_held_to_the_model_without_memory(recall_batches: Any, recall_model: SenriForCausalLM) -> None:
    batches = recall_batches()
    batch = batches([{"number": 0}])
    assert objective(recall_model, batches)(**batch)["divergence"] > 1e-3
    torch.nn.init.zeros_(recall_model.model.layers[RECALL_LAYER].self_attn.memory_o_proj.weight)
    assert objective(recall_model, batches)(**batch)["divergence"].abs() < 1e-6


def test_a_text_ends_with_the_window_and_plain_text_goes_on(
    recall_batches: Any, recall_rows: TrainingRows, bytes_tokenizer: Any
) -> None:
    batches, flat = recall_batches(), torch.cat(list(recall_rows.tokens))
    states = torch.cat([recall_rows.frozen_base[row] for row in range(5)])  # type: ignore[index]
    windows = set()
    for step in range(12):
        batch = batches([{"number": 3 * step}])
        near = int(batch["window"])
        windows.add(near)
        own = torch.cat([batch["states"][0, -near:], batch["going_on"][0]])
        (place,) = (at for at in range(len(flat) - len(own)) if torch.equal(states[at : at + len(own)], own))
        assert torch.equal(batch["ids"][0, -near:], flat[place : place + near])
        assert batch["going_on"].shape == (1, 12, 32)
        # What is asked for stands before the window, and no question brings text of its own.
        assert batches.kinds[-1] not in {batches.kinds[kind] for kind in batch["kinds"].tolist()}
        assert (batch["questions"][:, 0] == int(bytes_tokenizer("\n")["input_ids"][0])).all()
    assert windows <= {*range(2, 8)} and len(windows) > 3


def test_a_window_stands_where_attention_sinks_stand_in_for_the_first_token(recall_model: SenriForCausalLM) -> None:
    read = Window(recall_model, torch.tensor([[1, 2, 3]]), RECALL_LAYER)
    assert read.positions.tolist() == [[8, 9, 10]]  # as behind a text that has left the window of 8
    assert read.positions_behind(2, 2).tolist() == [[11, 12]] * 2


def test_rows_begin_with_other_texts(recipe_file: Path, bytes_tokenizer: Any) -> None:
    words = ["training.recall.haystacks.noise=2", "training.recall.haystacks.code=3"]
    recipe = ConfigManager(recall_recipe(recipe_file), words).recipe
    rows, identity = training_rows(recipe, bytes_tokenizer)
    texts = [bytes_tokenizer.decode(row) for row in rows.tokens]
    for noise in texts[:2]:
        assert noise[:30] in noise[30:] and len(noise) == 256
    modules = [path.read_text(errors="replace") for path in Path(sysconfig.get_paths()["stdlib"]).glob("*.py")]
    assert re.search(r"[ .]\d+\n", texts[2])
    code = "".join(texts[3:6])
    assert texts[0] != texts[1] and any(code.startswith(module[:200]) for module in modules if module)
    assert "\n" in texts[6] and texts[7].count("<eos>") >= 3
    none = dict.fromkeys(("noise", "contents", "code", "reference", "beginnings"), 0)
    plain = training_rows(ConfigManager(recall_recipe(recipe_file, **none)).recipe, bytes_tokenizer)
    assert plain[1] != identity and [bytes_tokenizer.decode(row) for row in plain[0].tokens] == texts[8:]
    assert training_rows(recipe, bytes_tokenizer)[1] == identity


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
        ("training.recall.window.shortest=0", "at least 1"),
        ("training.recall.window.shortest=900000", "longest not below shortest"),
        ("training.recall.haystacks.facts=0", "facts is 0"),
        ("training.recall.haystacks.code=-1", "code is -1"),
        ("training.recall.haystacks.hidden=[]", "hidden is"),
        ("training.recall.haystacks.hidden=[0]", "numbers from 1 on"),
        ("training.recall.haystacks.styles={chat: 0, question: 0, verbatim: 0, completion: 0, begun: 0}", "styles is"),
        ("training.recall.haystacks.alike_share=2", "0 to 1"),
        ("training.recall.haystacks.same_wording_share=-1", "same_wording_share is -1"),
        ("training.recall.haystacks.first_weight=0", r"first_weight is 0(\.0)?, but it must be above 0"),
        ("training.recall.haystacks.passage_width=9", "a passage has 16 tokens"),
        ("training.recall.finding.lengths.longest=10", "less than first"),
        ("training.recall.finding.lengths.growth=0.9", "growth is 0.9"),
        ("training.recall.finding.lengths.first=0", "first is 0"),
        ("training.recall.finding.lengths.shortest_share=0", "shortest_share is 0"),
        ("training.recall.finding.sharpness=0", "sharpness is 0"),
        ("training.recall.finding.prior=-1", "prior is -1"),
        ("training.recall.finding.meeting=-1", "meeting is -1"),
        ("training.recall.answering.kl_weight=-1", "kl_weight is -1"),
        ("training.recall.answering.text_tokens=0", "text_tokens is 0"),
        ("training.stages.memory.train=mixers", "train answering"),
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
