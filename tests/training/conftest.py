"""A byte-level tokenizer, a tiny base in a folder, Senri models of every way to combine, and a folder of text."""

from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from senri.models import SenriConfig, SenriForCausalLM
from senri.settings import build, config_dir, load_yaml
from senri.training.frozen_base import FrozenBase
from senri.training.parameters import choose_trained
from senri.training.recall.batches import FindingBatches, RecallBatches
from senri.training.recall.config import LengthsConfig, RecallConfig
from senri.training.recall.haystacks import Haystacks
from senri.training.rows import TrainingRows

SIZES = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "eos_token_id": 256,
    "tie_word_embeddings": True,
}
MEMORIES: dict[str, dict[str, Any]] = {
    "gate": {
        "sliding_window": 8,
        "default_layer_type": "sliding_attention",
        "attention_sink": True,
        "memory": {"combine": "gate", "segment_length": 4, "gate_init": 0.0},
    },
    "add": {
        "sliding_window": 8,
        "default_layer_type": "sliding_attention",
        "memory": {
            "combine": "add",
            "rule": "delta",
            "feature_map": "l2",
            "normaliser": "rmsnorm",
            "granularity": "token",
            "projections": "own",
            "token_shift": True,
            "short_convolution": 3,
            "learned_write_strength": True,
            "write_strength": 0.4,
        },
    },
    "alone": {
        "memory": {
            "combine": "alone",
            "segment_length": 4,
            "order": "update_then_retrieve",
            "projections": "own",
            "num_heads": 1,
            "num_key_value_heads": 1,
            "key_dim": 32,
            "value_dim": 32,
        },
    },
}
MEMORIES["copy"] = MEMORIES["add"] | {
    "memory": MEMORIES["add"]["memory"]
    | {"combine": "copy", "learned_read_strength": True, "eps": 0.1, "copy_sharpness": 8.0}
    | {"num_heads": 2, "num_key_value_heads": 2}
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary | {"<eos>": len(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def tiny_model(combine: str, layers: tuple[int, ...] = (2, 3), **changes: Any) -> SenriForCausalLM:
    """Return a Senri model in float64, so that two ways to compute the same can be compared tightly."""
    torch.manual_seed(0)
    settings = MEMORIES[combine]
    memory = settings["memory"] | changes
    config = SenriConfig(**SIZES, memory_layers=list(layers), **(settings | {"memory": memory}))
    model = SenriForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "memory_o_proj" in name:  # a branch that adds nothing would hide mistakes
            torch.nn.init.normal_(parameter, std=0.2)
    return torch.nn.Module.to(model, torch.float64)


@pytest.fixture(scope="session")
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, bytes_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=512)).save_pretrained(folder)
    bytes_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name in sorted(topics)[:8]:
        (folder / f"{name}.txt").write_text(topics[name][:1500], encoding="utf-8")
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path, base_folder: Path, text_folder: Path) -> Path:
    return write_recipe(tmp_path, base_folder, text_folder)


def write_recipe(folder: Path, base_folder: Path, text_folder: Path) -> Path:
    """Return a recipe of three short stages; the run's folder is `runs/recipe` in `folder`."""
    stage = {"max_steps": 4, "learning_rate": 1e-3}
    recipe = {
        "model": {"preset": str(preset_file(folder, "gate")), "base_model_name": str(base_folder)},
        "training": {
            "batch_size": 2,
            "max_length": 32,
            "segment_tokens": 16,
            "precision": "float32",
            "stages": {name: stage for name in ("distill", "memory", "full")},
        },
        "experiment": {
            "out": str(folder / "runs"),
            "device": "cpu",
            "report_to": [],
            "save_every": 2,
            "data": {"train": str(text_folder), "cache": str(folder / "tokens"), "held_out": [0.2, 0.0]},
            "needles": {"ratio": 0.0},
            "evaluation": {"documents": 1, "tokens": 64, "chunk_size": 16},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def preset_file(folder: Path, combine: str) -> Path:
    path = folder / f"{combine}.yaml"
    path.write_text(yaml.safe_dump({"base": "", "memory_layers": [2], **MEMORIES[combine]}), encoding="utf-8")
    return path


RECALL_TEXT = "The inn stood by the water. Nobody had seen the ferryman since Tuesday, and the lamp was out. " * 20
RECALL_LAYER = 2
SMALL = {
    **{"facts": 12, "group": 3, "asked": 2, "texts": 8, "passage_areas": 3, "passage_width": 50, "passages": 3},
    **{"passages_until": 80, "passage_cue": 6, "passage_tokens": 10, "hidden": [2, 4], "tokens_per_fact": 20},
    **{
        "windows": 2,
        "window_tokens": [9, 5],
        "neighbourhood": 8,
        "aftermath": 3,
        "question_context": 4,
        "text_tokens": 12,
        "questions": 5,
        "text_questions": 2,
    },
    **{"noise_characters": 200},
    **{"styles": {"verbatim": 1.0, "completion": 1.0, "question": 1.0}, "noise": 1, "code": 1, "noise_sentences": 1},
    **{"contents": 1, "contents_entries": 5, "reference": 1, "beginnings": 1, "beginning_tokens": 60},
}
LENGTHS = {"first": 60, "longest": 160, "growth": 1.5, "shortest_share": 0.5}


def recall_values(**changes: Any) -> dict[str, Any]:
    """Return the recipe's settings for small texts."""
    values: dict[str, Any] = load_yaml(config_dir() / "recipes" / "smollm2_recall.yaml")["training"]["recall"]
    values["haystacks"] |= SMALL | changes
    values["finding"] |= {"lengths": LENGTHS, "sharpness": 8.0, "prior": 0.3, "times_longer": 9, "meeting_first": 2}
    values["answering"] |= {"lengths": LENGTHS, "text_tokens": 12}
    values["window"] = {"shortest": 2, "longest": 7}  # of the 8 that the small models have
    return values


def recall_config(**changes: Any) -> RecallConfig:
    return build(RecallConfig, recall_values(**changes), "test")


@pytest.fixture
def recall_model() -> SenriForCausalLM:
    model = torch.nn.Module.to(tiny_model("add", (RECALL_LAYER,), learned_read_strength=True, eps=0.1), torch.float32)
    choose_trained(model, "memory")
    return model


@pytest.fixture
def recall_rows(recall_model: SenriForCausalLM, bytes_tokenizer: Any, tmp_path: Path) -> TrainingRows:
    ids = torch.tensor(bytes_tokenizer(RECALL_TEXT)["input_ids"][: 5 * 256]).view(5, 256)
    rows = TrainingRows([{"input_ids": row} for row in ids], answers=False)
    rows.frozen_base = FrozenBase(recall_model, rows.tokens, tmp_path / "base", "float32", "text", 64)
    return rows


@pytest.fixture
def haystacks(recall_model: SenriForCausalLM, recall_rows: TrainingRows, bytes_tokenizer: Any, tmp_path: Path) -> Any:
    def draw_from(seed: int = 0, growth: float = 1.5, longest: int = 160, behind: int = 0, **changes: Any) -> Haystacks:
        config = recall_config(**changes).haystacks
        lengths, folder = LengthsConfig(60, longest, growth, 0.5), tmp_path / f"kept-{seed}"
        text = (recall_model, bytes_tokenizer, recall_rows)
        return Haystacks(*text, config, lengths, behind, folder, 3, seed, "float32")

    return draw_from


@pytest.fixture
def finding_batches(haystacks: Any, recall_model: SenriForCausalLM, tmp_path: Path) -> Any:
    def build_batches(seed: int = 0, meeting_first: int = 0, **changes: Any) -> FindingBatches:
        config, folder = recall_config(), tmp_path / f"kept-{seed}"
        finding = replace(config.finding, meeting_first=meeting_first)
        return FindingBatches(haystacks(seed, **changes), recall_model, config.haystacks, finding, folder, "float32")

    return build_batches


@pytest.fixture
def recall_batches(haystacks: Any) -> Any:
    def build_batches(seed: int = 0, **changes: Any) -> RecallBatches:
        config = recall_config()
        more = config.answering.text_tokens
        return RecallBatches(haystacks(seed, behind=config.window.longest + more, **changes), config.window, more)

    return build_batches


def recall_recipe(recipe_file: Path, **changes: Any) -> Path:
    """Return a recipe of one stage with the loss recall."""
    recipe = yaml.safe_load(recipe_file.read_text())
    preset = preset_file(recipe_file.parent, "add")
    values = yaml.safe_load(preset.read_text())
    values["memory"] |= {"learned_read_strength": True, "eps": 0.1}
    preset.write_text(yaml.safe_dump(values), encoding="utf-8")
    recipe["model"]["preset"] = str(preset)
    recipe["training"] |= {"max_length": 256, "segment_tokens": 64, "recall": recall_values(**changes)}
    recipe["training"]["batch_size"] = recipe["training"]["micro_batch_size"] = 3
    recipe["training"]["stages"] = {
        "distill": {"enabled": False},
        "memory": {"max_steps": 6, "loss": "recall", "train": "answering", "learning_rate": 1e-2},
        "full": {"enabled": False},
    }
    path = recipe_file.with_name("recall.yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def stop_in_call(monkeypatch: pytest.MonkeyPatch, objective: type[Any], number: int) -> None:
    """Let the forward pass of an objective fail when it is called for the given time, counted from 0."""
    forward, calls = objective.forward, iter(range(number + 1))

    def stopping(self: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise ZeroDivisionError
        return forward(self, **kwargs)

    monkeypatch.setattr(objective, "forward", stopping)
