"""Recall training: samples are what they say, the memory alone can know the answer, and lengths grow and are kept."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from senri.data.facts import KINDS
from senri.errors import SenriError
from senri.models import SenriForCausalLM
from senri.settings import build, config_dir, load_yaml
from senri.training import ConfigManager, ThreeStageTrainer
from senri.training.answers import AnswersOnly
from senri.training.callbacks import read_metrics
from senri.training.frozen_base import FrozenBase, lower_states
from senri.training.parameters import choose_trained
from senri.training.recall.config import RecallConfig
from senri.training.recall.curriculum import GrowingLength
from senri.training.recall.objective import Recall
from senri.training.recall.samples import RecallBatches
from senri.training.rows import TrainingRows

from .conftest import preset_file, tiny_model
from .test_language_modelling import assert_same, gradients

TEXT = "The inn stood by the water. Nobody had seen the ferryman since Tuesday, and the lamp was out. " * 20


def recall_values(**changes: Any) -> dict[str, Any]:
    """Return the recipe's settings for small texts; what belongs to a phase is changed in all of them."""
    values: dict[str, Any] = load_yaml(config_dir() / "recipes" / "smollm2_recall.yaml")["training"]["recall"]
    of_phases = {name: changes.pop(name) for name in list(changes) if name in values["phases"][-1]}
    easy = {"until": 30, "kinds": {"numbers": 1.0, "passages": 1.0}, "styles": {"verbatim": 1.0}, "kl_weight": 0.0}
    later = [{"until": until, "kl_weight": 1.0} for until in (40, None)]
    phases = [values["phases"][-1] | phase | of_phases for phase in (easy, *later)]
    small = {"first_length": 40, "longest": 160, "neighbourhood": 8, "question_context": 4, "text_tokens": 12}
    return values | small | {"tokens_per_batch": 100000, "phases": phases} | changes


RECIPE_KINDS = [*KINDS, "passages"]


def recall_config(**changes: Any) -> RecallConfig:
    return build(RecallConfig, recall_values(**changes), "test")


@pytest.fixture
def model() -> SenriForCausalLM:
    model = torch.nn.Module.to(tiny_model("add", (2,)), torch.float32)
    choose_trained(model, "memory")
    return model


@pytest.fixture
def batches(model: SenriForCausalLM, bytes_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    ids = torch.tensor(bytes_tokenizer(TEXT)["input_ids"][: 5 * 256]).view(5, 256)
    rows = TrainingRows([{"input_ids": row} for row in ids], answers=False)
    rows.frozen_base = FrozenBase(model, rows.tokens, tmp_path, "float32", "text", 64)
    monkeypatch.setattr(
        bytes_tokenizer, "chat_template", "{% for m in messages %}<{{ m.content }}>{% endfor %}", raising=False
    )

    def make(seed: int = 0, **changes: Any) -> RecallBatches:
        config = recall_config(**changes)
        return RecallBatches(model, bytes_tokenizer, rows, config, GrowingLength(config), seed)

    return make


def numbered(count: int) -> list[dict[str, int]]:
    return [{"number": number} for number in range(count)]


def text_of(tokenizer: Any, ids: Tensor) -> str:
    return str(tokenizer.decode(ids))


def test_a_sample_hides_its_answer_and_asks_for_it(batches: Any, bytes_tokenizer: Any) -> None:
    maker = batches(text_share=0.0)
    phase = dataclasses.replace(maker._config.phases[-1], kinds=dict.fromkeys(KINDS, 1.0))
    for number in range(20):
        sample = maker._sample(number, 60, phase)
        hidden = [text_of(bytes_tokenizer, torch.tensor(ids)) for ids, _ in sample.facts]
        tail = text_of(bytes_tokenizer, torch.tensor(sample.tail[: sample.answer]))
        answer = text_of(bytes_tokenizer, torch.tensor(sample.tail[sample.answer :])).removesuffix("<eos>").strip()
        assert answer and any(answer in sentence for sentence in hidden), (answer, hidden)
        assert answer not in tail[4:]
        assert [place for _, place in sample.facts] == sorted(place for _, place in sample.facts)


def test_the_states_are_those_of_the_text_with_the_facts_in_it(
    batches: Any, model: SenriForCausalLM, bytes_tokenizer: Any
) -> None:
    maker = batches(text_share=0.0)
    phase = dataclasses.replace(maker._config.phases[-1], needles=[1], kinds={"facts": 1.0})
    sample = maker._sample(3, 60, phase)
    states = maker.read(sample)
    ((ids, place),) = sample.facts
    assert len(states) == 60 + len(ids)
    flat = torch.cat(list(maker._rows.tokens))
    before, behind = states[:place], states[place + len(ids) :]
    whole = torch.cat([maker._base[row] for row in range(5)])
    assert torch.equal(before, whole[sample.start : sample.start + place])
    assert torch.equal(behind, whole[sample.start + place : sample.start + 60])
    run = torch.cat([flat[sample.start + place - 8 : sample.start + place], torch.tensor(ids)])
    assert torch.allclose(
        states[place : place + len(ids)], lower_states(model, run[None], 2, 1000)[0, 8:], atol=1e-5, rtol=1e-5
    )


def test_samples_are_decided_by_seed_and_number(batches: Any) -> None:
    first, again, other = batches(0)(numbered(4)), batches(0)(numbered(4)), batches(1)(numbered(4))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tail_ids"][:, :8], other["tail_ids"][:, :8])


def test_a_passage_is_asked_for_by_its_beginning(batches: Any) -> None:
    maker = batches(text_share=0.0, passage_cue=6, passage_tokens=10)
    phase = dataclasses.replace(maker._config.phases[-1], kinds={"passages": 1.0})
    flat = torch.cat(list(maker._rows.tokens)).tolist()
    for number in range(10):
        sample = maker._sample(number, 30, phase)
        text = flat[sample.start : sample.start + 30]
        asked = sample.tail[1:]  # behind a line break
        assert sample.answer == len(sample.tail) - 10 and len(asked) == 16 and sample.facts == ()
        assert any(text[place : place + 16] == asked for place in range(15))
    assert len(maker._sample(0, 9, phase).tail) == 1 + 9


def test_short_texts_ask_for_easy_things(batches: Any) -> None:
    maker = batches(text_share=0.0)
    kinds = maker._config.kinds
    maker._length.length = 20
    easy = maker(numbered(12))
    assert {kinds[kind] for kind in easy["kinds"].tolist()} == {"numbers", "passages"} and easy["kl_weight"] == 0
    maker._length.length = 50
    hard = maker(numbered(12))
    assert len({*hard["kinds"].tolist()}) > 2 and hard["kl_weight"] == 1


def test_a_chat_needs_a_template(batches: Any, bytes_tokenizer: Any) -> None:
    bytes_tokenizer.chat_template = None
    with pytest.raises(SenriError, match="no chat template: leave chat out"):
        batches()
    batches(styles={"question": 1.0})


def test_long_texts_come_in_small_batches(batches: Any) -> None:
    assert len(batches(tokens_per_batch=90, shortest_share=0.99)(numbered(8))["lengths"]) == 2
    assert len(batches(tokens_per_batch=100000)(numbered(8))["lengths"]) == 8


def test_the_loss_is_that_of_answers_read_by_all_layers(batches: Any, model: SenriForCausalLM) -> None:
    batch = batches(text_share=0.0)(numbered(3))
    found = Recall(model, 16, "full", True, 2, kinds=RECIPE_KINDS)(**batch)
    mine = gradients(model, found["loss"])
    losses = []
    for row in range(3):
        count = int(batch["lengths"][row])
        reader = AnswersOnly(model, 1000, "full", False, 2)
        memory = reader.read(
            torch.zeros(1, count, dtype=torch.long), torch.tensor([count]), batch["states"][row : row + 1, :count]
        )
        tail = batch["tail_ids"][row : row + 1]
        logits = model(tail, position_ids=(count + torch.arange(tail.shape[1]))[None], past_key_values=memory).logits
        wanted = batch["is_answer"][row, 1:]
        losses.append(F.cross_entropy(logits[0, :-1][wanted].float(), tail[0, 1:][wanted]))
    loss = torch.stack(losses).mean()
    assert torch.isclose(found["loss"], loss, rtol=1e-4)
    assert_same(mine, gradients(model, loss), 1e-3)
    assert found["length"] == batch["lengths"].float().mean()
    by_kind = {RECIPE_KINDS[kind] for kind in batch["kinds"].tolist()}
    assert {name.removeprefix("correct_") for name in found if name.startswith("correct_")} == by_kind


def test_plain_text_is_held_to_the_model_without_memory(batches: Any, model: SenriForCausalLM) -> None:
    batch = batches(text_share=0.99, kl_weight=0.5)(numbered(3))
    assert batch["is_text"].any() and not batch["is_answer"].any()
    found = Recall(model, 16, "full", False, 2, kinds=RECIPE_KINDS)(**batch)
    assert "correct" not in found and found["divergence"] > 0
    assert torch.isclose(found["loss"], 0.5 * found["divergence"])
    torch.nn.init.zeros_(model.model.layers[2].self_attn.memory_o_proj.weight)
    assert Recall(model, 16, "full", False, 2, kinds=RECIPE_KINDS)(**batch)["divergence"].abs() < 1e-6


def test_lengths_grow_when_answers_are_right(batches: Any) -> None:
    growing = GrowingLength(recall_config(growth=2.0, passed_at=0.5, smoothing=0.5, longest=100))
    growing.note({"correct": torch.tensor(0.9)})
    assert growing.length == 40
    growing.note({"correct": torch.tensor(0.9)})
    assert growing.length == 80
    growing.note({})
    for _ in range(4):
        growing.note({"correct": torch.tensor(1.0)})
    assert growing.length == 100


def write(recipe_file: Path, **changes: Any) -> Path:
    recipe = yaml.safe_load(recipe_file.read_text())
    recipe["model"]["preset"] = str(preset_file(recipe_file.parent, "add"))
    recipe["training"] |= {"max_length": 256, "segment_tokens": 64, "recall": recall_values(**changes)}
    recipe["training"]["batch_size"] = recipe["training"]["micro_batch_size"] = 3
    recipe["training"]["stages"] = {
        "distill": {"enabled": False},
        "memory": {"max_steps": 6, "loss": "recall", "train": "memory", "learning_rate": 1e-2},
        "full": {"enabled": False},
    }
    path = recipe_file.with_name("recall.yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def test_a_run_that_was_stopped_goes_on_with_the_same_texts(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write(recipe_file, passed_at=0.01, smoothing=0.1, styles={"completion": 1.0})

    def run(name: str) -> list[tuple[float, float]]:
        outcome = ThreeStageTrainer(ConfigManager(recipe, [f"experiment.name={name}"])).train()
        return [(line["loss"], line["length"]) for line in read_metrics(outcome.folder / "metrics.jsonl")]

    whole = run("whole")
    forward, calls = Recall.forward, iter(range(100))

    def stopping(self: Recall, **kwargs: Any) -> Any:
        if next(calls) == 5:
            raise ZeroDivisionError
        return forward(self, **kwargs)

    monkeypatch.setattr(Recall, "forward", stopping)
    with pytest.raises(ZeroDivisionError):
        run("cut")
    monkeypatch.undo()
    assert run("cut") == whole and len(whole) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"needles": []}, "needles is"),
        ({"kinds": {}}, "kinds is"),
        ({"styles": {"chat": 0.0}}, "styles is"),
        ({"passed_at": 1.0}, "passed_at is 1.0"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0"),
        ({"until": None}, "phases end at"),
    ],
)
def test_a_wrong_phase_is_refused(changes: dict[str, Any], said: str) -> None:
    values = recall_values()
    values["phases"][0] |= changes
    with pytest.raises(SenriError, match=said):
        build(RecallConfig, values, "test")


def test_settings_that_do_not_go_together_are_refused(recipe_file: Path) -> None:
    recipe = write(recipe_file)
    for word, message in (
        ("training.recall=null", "training.recall says nothing"),
        ("training.stages.memory.max_steps=null", "set max_steps"),
        ("training.recall.growth=1", "growth is 1"),
        ("training.recall.phases=[]", "phases end at"),
        ("training.recall.first_length=8", "no longer than passage_cue"),
    ):
        with pytest.raises(SenriError, match=message):
            ConfigManager(recipe, [word])
    with pytest.raises(SenriError, match="frozen_base=true"):
        ThreeStageTrainer(ConfigManager(recipe, ["training.frozen_base=false"])).train()
