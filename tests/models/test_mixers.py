"""Where mixers draw their lines: to which side a gate opens, which token first sees a sink, where angles split."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

from senri.errors import SenriError
from senri.models import SenriConfig, SenriForCausalLM
from senri.models.rotary import EXACT_POSITIONS, SenriRotaryEmbedding

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gate", "gate_full", "gated_delta"])
def test_a_closed_gate_leaves_attention_and_an_open_one_the_memory(
    build: Callable[..., SenriForCausalLM], ids: Tensor, kind: str
) -> None:
    model = build(kind)
    mixers = [layer.self_attn for layer in model.model.layers if hasattr(layer.self_attn, "memory")]
    with model.memory_disabled():
        local = model(ids).logits
    for mixer in mixers:
        mixer.memory_gate.weight.fill_(-40.0)
    torch.testing.assert_close(model(ids).logits, local, **TOLERANCE)
    for mixer in mixers:
        mixer.memory_gate.weight.fill_(40.0)
    alone = model(ids).logits
    assert not torch.allclose(alone, local, **TOLERANCE)
    for mixer in mixers:  # whatever local attention says, nothing of it comes through
        mixer.attend = lambda qkv, *rest, **more: (torch.zeros_like(qkv[0]).transpose(1, 2), None)
    torch.testing.assert_close(model(ids).logits, alone, **TOLERANCE)


@torch.no_grad()
def test_what_is_read_is_added_as_strongly_as_the_token_asks_for_it(
    build: Callable[..., SenriForCausalLM], ids: Tensor
) -> None:
    model = build("add")
    read = model.model.layers[1].self_attn.memory_read
    with model.memory_disabled():
        base = model(ids).logits
    asked = model(ids).logits
    read.proj.weight.zero_()
    read.proj.bias.fill_(-40.0)
    torch.testing.assert_close(model(ids).logits, base, **TOLERANCE)
    read.proj.bias.fill_(40.0)
    whole = model(ids).logits
    assert not torch.allclose(whole, base, **TOLERANCE) and not torch.allclose(whole, asked, **TOLERANCE)
    read.reset_parameters()
    hidden, remembered = torch.randn(2, 3, model.config.hidden_size), 0.4 * torch.randn(2, 3, read.proj.out_features, 5)
    share = remembered.square().mean(-1, keepdim=True)  # of what is read beside memory.eps, by the normaliser
    odds = 9 * share / (1 - share)  # 0.9 where a read is half found
    torch.testing.assert_close(read(remembered, hidden), odds / (1 + odds) * remembered, rtol=1e-4, atol=1e-5)
    assert not read(torch.zeros_like(remembered), hidden).any()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pads", [0, 4])
def test_a_sink_is_seen_from_the_token_that_lost_the_first(
    build: Callable[..., SenriForCausalLM], ids: Tensor, attention: str, pads: int
) -> None:
    with_sink, without = build("sink"), build("sliding")
    without.load_state_dict(with_sink.state_dict(), strict=False)
    mask = torch.ones_like(ids)
    mask[:, :pads] = 0
    logits = []
    for model in (with_sink, without):
        model.set_attn_implementation(attention)
        logits.append(model(ids, attention_mask=mask).logits[:, pads:])
    window = with_sink.config.sliding_window
    torch.testing.assert_close(logits[0][:, :window], logits[1][:, :window], **TOLERANCE)
    assert (logits[0][:, window] - logits[1][:, window]).abs().max() > 1e-2


def test_angles_follow_the_definition_across_the_split(build: Callable[..., SenriForCausalLM]) -> None:
    config = build("gate", "gpt_neox").config
    rotary = SenriRotaryEmbedding(config)
    near, x = torch.tensor([[0, 1, 300, EXACT_POSITIONS - 1]]), torch.zeros(1)
    for got, expected in zip(rotary(x, near), GPTNeoXRotaryEmbedding(config)(x, near), strict=True):
        assert torch.equal(got, expected)
    far = torch.tensor([[EXACT_POSITIONS - 1, EXACT_POSITIONS, EXACT_POSITIONS + 1, 2**24 + 5, 50_000_017, 2**40 + 3]])
    angles = far.double()[..., None] * rotary.inv_freq.double()
    cos, sin = rotary(x, far)
    for got, expected in ((cos, angles.cos()), (sin, angles.sin())):
        torch.testing.assert_close(got.double(), torch.cat([expected, expected], -1), atol=1e-2, rtol=0)


def test_layers_of_one_model_may_have_different_memories(build: Callable[..., SenriForCausalLM]) -> None:
    config = build("mixed").config
    assert config.layer_types == ["linear_attention", "hybrid", "hybrid"]
    memories = [config.memory_config_of(layer) for layer in range(3)]
    assert [(memory.type, memory.rule, memory.projections) for memory in memories] == [
        ("tensor", "gated_delta", "shared"),
        ("multi", "linear", "shared"),
        ("multi", "linear", "own"),
    ]
    again = type(config).from_dict(config.to_dict())
    assert [again.memory_config_of(layer) for layer in range(3)] == memories


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_memories": {2: {"rule": "delta"}}}, r"layer_memories names layer 2, but memory_layers are \[0, 1\]"),
        ({"layer_memories": {1: {"ruel": "delta"}}}, "did you mean 'rule'"),
        ({"layer_memories": {1: 5}}, "must map layer indices to sections"),
        ({"layer_memories": [1]}, "must map layer indices to sections"),
        ({"memory": {"state": "shared"}}, "query projections of their own"),
        (
            {
                "memory": {"state": "shared", "projections": "own"},
                "layer_memories": {1: {"rule": "delta"}},
            },
            "layers 0 and 1 share a state .* but differ",
        ),
        ({"top_k_memories": 4}, "unknown key 'memory.options.top_k'"),
        (
            {"memory": {"type": "orthogonal", "calibration": "whiten", "options": {"basis": "egien"}}},
            "did you mean 'eigen'",
        ),
    ],
)
def test_memories_that_do_not_fit_are_named(changes: dict[str, object], message: str) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "memory_layers": [0, 1]}
    with pytest.raises(SenriError, match=message):
        SenriConfig(**sizes, **changes)


def test_the_number_of_memories_to_read_is_an_input_of_the_configuration() -> None:
    config = SenriConfig(memory_layers=[1], memory={"type": "orthogonal"}, top_k_memories=4)
    assert config.memory_config.options == {"top_k": 4}
