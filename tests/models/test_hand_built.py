"""Layers mixed by hand: the blocks of SenriForCausalLM, in a model that saves, loads, generates and remembers."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from senri.errors import SenriError
from senri.memory import HierarchicalMemory, MultiMemory, TensorMemory
from senri.models import SenriForCausalLM, TransformerLM, create_model
from senri.models.layers import HierarchicalLayer, InfiniLayer, MultiMemoryLayer, PythiaLayer

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
SIZES = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 48}
SMALL = {**SIZES, "vocab_size": 101}
NAMES = ("pythia", "infini", "multi_memory", "hierarchical")


def mix() -> SenriForCausalLM:
    torch.manual_seed(0)
    layers = [
        PythiaLayer(32, 4, 48, sliding_window=8),
        InfiniLayer(32, 4, 48, num_memory_banks=2, segments_per_bank=1, segment_length=3),
        MultiMemoryLayer(32, 4, 48, sliding_window=8, num_memories=3, use_delta_rule=False, segment_length=4),
        HierarchicalLayer(**SIZES, segment_length=5, combine="alone"),
    ]
    model = TransformerLM(layers=layers, vocab_size=101).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)  # large enough that a wrong state shows
    return model


@torch.no_grad()
def test_any_mix_is_one_model_that_saves_loads_and_generates(ids: Tensor, tmp_path: Path) -> None:
    model = mix()
    assert model.config.layer_types == ["sliding_attention", "hybrid", "hybrid_sliding", "linear_attention"]
    memories = [branch.memory for branch in model.model.memory_branches().values()]
    assert [type(memory) for memory in memories] == [TensorMemory, MultiMemory, HierarchicalMemory]
    assert [memory.config.rule for memory in memories] == ["delta", "linear", "delta"]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is SenriForCausalLM
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))
    beams = {"num_beams": 2, **options}
    assert torch.equal(loaded.generate(ids, **beams), loaded.generate(ids, use_cache=False, **beams))


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_mix_reads_in_pieces_as_in_one(ids: Tensor, size: int) -> None:
    model = mix()
    whole = model(ids).logits
    with model.new_sequence(batch_size=2):
        pieces = [model(ids[:, start : start + size]).logits for start in range(0, ids.shape[1], size)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **TOLERANCE)


def test_the_layers_become_part_of_the_model() -> None:
    layers = [InfiniLayer(**SIZES), PythiaLayer(**SIZES)]
    before = copy.deepcopy(layers[0].state_dict())
    model = TransformerLM(layers, vocab_size=101)
    assert model.model.layers[0] is layers[0]
    assert all(torch.equal(value, before[name]) for name, value in model.model.layers[0].state_dict().items())
    model(torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    assert layers[0].self_attn.memory.inputs.q_proj.weight.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("kind", [PythiaLayer, InfiniLayer, MultiMemoryLayer, HierarchicalLayer])
@pytest.mark.parametrize("window", [None, 4])
def test_a_layer_alone_does_what_it_does_in_a_model(kind: type[PythiaLayer], window: int | None) -> None:
    torch.manual_seed(0)
    layer = kind(**SIZES, sliding_window=window).eval()
    x = torch.randn(2, 11, 32)
    alone = layer(x)
    model = TransformerLM([layer], vocab_size=101).eval()
    model.model.norm = torch.nn.Identity()
    torch.testing.assert_close(model.model(inputs_embeds=x).last_hidden_state, alone, **TOLERANCE)
    moved = x.clone()
    moved[:, 0] += 1.0
    assert not torch.equal(layer(moved)[:, 1], alone[:, 1])
    later = x.clone()
    later[:, 7] += 1.0
    assert torch.equal(layer(later)[:, :7], alone[:, :7])


@pytest.mark.parametrize("name", NAMES)
def test_the_four_models_have_one_memory_layer_and_five_pythia_layers(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    config = model.config
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert sizes == (6, 512, 8, 2048)
    kinds = [type(layer) for layer in model.model.layers]
    first = dict(zip(NAMES, (PythiaLayer, InfiniLayer, MultiMemoryLayer, HierarchicalLayer), strict=True))[name]
    assert kinds == [first, *[PythiaLayer] * 5]
    if name != "pythia":
        memory = model.model.layers[0].self_attn.memory.memory
        assert (memory.num_heads, memory.key_dim, memory.value_dim) == (1, 512, 512)  # one head as wide as the model
        assert memory.config.rule == "delta"
        assert memory.parts == (None if name == "infini" else 4)


def test_options_reach_the_memory() -> None:
    infini = create_model("infini", **SMALL, num_memory_banks=3, segments_per_bank=2, use_delta_rule=False)
    memory = infini.model.layers[0].self_attn.memory.memory
    assert (memory.parts, memory.options.segments_per_bank, memory.config.rule) == (3, 2, "linear")
    for name in ("multi_memory", "hierarchical"):
        model = create_model(name, **SMALL, num_memories=2, use_delta_rule=False, max_position_embeddings=77)
        memory = model.model.layers[0].self_attn.memory.memory
        assert (memory.parts, memory.config.rule, model.config.max_position_embeddings) == (2, "linear", 77)


def test_layers_that_share_a_state_keep_one() -> None:
    shared = {"state": "shared", "segment_length": 4}
    model = TransformerLM([InfiniLayer(**SIZES, **shared), PythiaLayer(**SIZES), InfiniLayer(**SIZES, **shared)], 101)
    with torch.no_grad(), model.new_sequence():
        model(torch.arange(20).unsqueeze(0))
        assert list(model.get_memory_state().layers) == [0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerLM([]), "at least one layer"),
        (lambda: TransformerLM(PythiaLayer(**SIZES)), "a list of at least one layer"),
        (lambda: TransformerLM([torch.nn.Linear(2, 2)]), "layer 0 is a Linear"),
        (lambda: TransformerLM([PythiaLayer(**SIZES)] * 2), "layer 1 stands in the list twice"),
        (lambda: TransformerLM([PythiaLayer(**SIZES), PythiaLayer(64, 4, 48)]), "layer 1 has hidden_size 64"),
        (lambda: TransformerLM([PythiaLayer(32, 4, 48, 8), PythiaLayer(32, 4, 48, 9)]), r"windows of \[8, 9\] tokens"),
        (lambda: PythiaLayer(32, 5, 48), "cannot be split"),
        (lambda: InfiniLayer(**SIZES, segment_lenght=3), "did you mean 'segment_length'"),
        (lambda: create_model("multi"), "there is no model 'multi': known: hierarchical, infini"),
        (lambda: create_model("infini", num_memory_bank=2), "did you mean 'num_memory_banks'"),
        (lambda: create_model("infini", num_memories=2), "a model 'infini' has no use for 'num_memories'"),
        (lambda: create_model("pythia", use_delta_rule=True), "has no use for 'use_delta_rule'"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(make: object, message: str) -> None:
    with pytest.raises(SenriError, match=message):
        make()
