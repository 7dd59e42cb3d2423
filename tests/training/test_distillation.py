"""Distillation: the base's own hidden states in, the base's own attention outputs as targets."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaForCausalLM

from senri.conversion import convert
from senri.errors import SenriError
from senri.models import SenriConfig, SenriForCausalLM
from senri.training.distillation import Distillation
from senri.training.parameters import choose_trained, memory_names, parameter_groups, trained_names

from .conftest import MEMORIES, SIZES, preset_file, tiny_model

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base(base_folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(base_folder).eval()


def converted(base_folder: Path, folder: Path, combine: str, *words: str) -> SenriForCausalLM:
    return convert(base_folder, preset_file(folder, combine), overrides=words).model


def test_a_mixer_that_is_the_base_s_attention_has_no_loss(base: Any, base_folder: Path, tmp_path: Path) -> None:
    words = ("sliding_window=64", "memory.gate_init=-40.0", "memory_layers=[1, 2]")
    model = converted(base_folder, tmp_path, "gate", *words)
    found = Distillation(model, base)(IDS)
    assert found.keys() == {"loss", "layer_1", "layer_2"}
    assert float(found["loss"].detach()) < 1e-9


def test_the_loss_is_the_relative_error_of_each_layer(base: Any, base_folder: Path, tmp_path: Path) -> None:
    model = converted(base_folder, tmp_path, "alone", "memory_layers=[1, 3]")
    parts = Distillation(model, base)(IDS)
    states = base(IDS, output_hidden_states=True).hidden_states
    rotary = base.model.rotary_emb(states[0], position_ids=torch.arange(24)[None])
    for index in (1, 3):
        inputs = base.model.layers[index].input_layernorm(states[index])
        target = base.model.layers[index].self_attn(inputs, position_embeddings=rotary, attention_mask=None)[0]
        branch = model.model.layers[index].self_attn
        reads, _ = branch.memory(inputs, branch.memory.init_state(2))
        project = getattr(branch, "memory_o_proj", None) or branch.o_proj
        out = project(reads.transpose(1, 2).flatten(2))
        wanted = (out - target).square().mean() / target.square().mean()
        assert torch.isclose(parts[f"layer_{index}"], wanted, rtol=1e-4)
    assert torch.isclose(parts["loss"], (parts["layer_1"] + parts["layer_3"]) / 2)


def test_only_the_mixers_learn(base: Any, base_folder: Path, tmp_path: Path) -> None:
    model = converted(base_folder, tmp_path, "add")
    choose_trained(model, "mixers")
    Distillation(model, base)(IDS)["loss"].backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learnt and all(name.startswith("model.layers.2.self_attn.") for name in learnt)
    assert all(parameter.grad is None for parameter in base.parameters())


def test_it_learns(base: Any, base_folder: Path, tmp_path: Path) -> None:
    model = converted(base_folder, tmp_path, "alone")
    choose_trained(model, "mixers")
    objective = Distillation(model, base)
    optimiser = torch.optim.AdamW(parameter_groups(objective, 1e-2, 1e-2, 0.0))
    before = float(objective(IDS)["loss"].detach())
    for _ in range(30):
        optimiser.zero_grad()
        objective(IDS)["loss"].backward()
        optimiser.step()
    assert float(objective(IDS)["loss"].detach()) < 0.5 * before


def test_gpt_neox_has_its_attention_elsewhere(tmp_path: Path, bytes_tokenizer: Any) -> None:
    sizes = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "eos_token_id")}
    GPTNeoXForCausalLM(GPTNeoXConfig(**(sizes | {"tie_word_embeddings": False}))).save_pretrained(tmp_path / "neox")
    bytes_tokenizer.save_pretrained(tmp_path / "neox")
    base = GPTNeoXForCausalLM.from_pretrained(tmp_path / "neox").eval()
    words = ("sliding_window=64", "memory.gate_init=-40.0")
    model = converted(tmp_path / "neox", tmp_path, "gate", *words)
    assert float(Distillation(model, base)(IDS)["loss"].detach()) < 1e-9


def test_a_model_or_base_that_does_not_fit_is_refused(base: Any) -> None:
    with pytest.raises(SenriError, match="no memory to distil into"):
        Distillation(SenriForCausalLM(SenriConfig(**SIZES)), base)
    del base.model.layers[2:]
    with pytest.raises(SenriError, match="memory.combine 'copy' has the base's"):
        Distillation(tiny_model("copy"), base)
    with pytest.raises(SenriError, match="no layer 3"):
        Distillation(tiny_model("add"), base)


@pytest.mark.parametrize("combine", MEMORIES)
def test_what_each_choice_trains(combine: str) -> None:
    model = tiny_model(combine, (2,))
    prefix = "model.layers.2.self_attn."
    choose_trained(model, "memory")
    memory = set(trained_names(model))
    assert memory and all(name.startswith(f"{prefix}memory") for name in memory)
    choose_trained(model, "mixers")
    mixers = set(trained_names(model))
    learnt = {name for name, _ in model.named_parameters() if not name.endswith("memory_codes.frequencies")}
    assert mixers == {name for name in learnt if name.startswith(prefix)}
    choose_trained(model, "all")
    assert set(trained_names(model)) == learnt


def test_gates_and_strengths_have_their_own_rate_and_no_decay() -> None:
    for combine, changes, names in (
        ("gate", {}, ["memory_gate"]),
        (
            "add",
            {"convolution_gates": True, "convolved_write_strength": True},
            ["beta_proj", "conv_beta", "conv_q.gates", "conv_k.gates"],
        ),
    ):
        model = tiny_model(combine, (2,), **changes)
        choose_trained(model, "mixers")
        by_id = {id(parameter): name for name, parameter in model.named_parameters()}
        matrices, *_, gates = parameter_groups(model, 1e-3, 1e-2, 0.1)
        found = {by_id[id(parameter)] for parameter in gates["params"]}
        assert found == {name for name in trained_names(model) if any(part in name for part in names)}
        assert (gates["lr"], gates["weight_decay"]) == (1e-2, 0.0)
        assert (matrices["lr"], matrices["weight_decay"]) == (1e-3, 0.1)
        assert all(parameter.ndim > 1 for parameter in matrices["params"])
        counted = sum(len(group["params"]) for group in parameter_groups(model, 1e-3, 1e-2, 0.1))
        assert counted == len(trained_names(model))


@pytest.mark.parametrize("measured", ["basis", "whitening"])
def test_what_is_measured_on_text_is_never_trained_but_belongs_to_the_memory(measured: str) -> None:
    torch.manual_seed(0)
    if measured == "basis":
        memory = {"type": "orthogonal", "combine": "gate", "segment_length": 4}
        model = SenriForCausalLM(SenriConfig(**SIZES, sliding_window=8, memory_layers=[2], memory=memory))
    else:
        model = tiny_model("add", (2,), whitened_inputs=True)
    choose_trained(model, "all")
    assert not any(f".{measured}" in name for name in trained_names(model))
    own = memory_names(model)
    assert any(f".{measured}" in name for name in own)
    choose_trained(model, "memory")
    assert {*trained_names(model)} == {name for name in own if f".{measured}" not in name}
