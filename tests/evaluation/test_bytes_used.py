import json
from pathlib import Path

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from senri.errors import SenriError
from senri.evaluation.bytes_used import BytesSettings, bytes_outcome, bytes_units
from senri.evaluation.footprint import kv_cache_bytes, layer_bytes, layer_shapes
from senri.evaluation.reader import open_reader
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch
from senri.memory.sparse import from_dense
from senri.mixers.branches import build_branch
from senri.models import SenriConfig, SenriForCausalLM

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WINDOW = {"sliding_window": 6, "default_layer_type": "sliding_attention"}
OWN = {"projections": "own", "combine": "add", "key_dim": 8, "value_dim": 12, "num_heads": 2, "num_key_value_heads": 2}
TOKENS = {"rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token"}
SENRI = {
    "full": {"memory_layers": []},
    "sliding": {"memory_layers": [], **WINDOW},
    "alone": {"memory_layers": [1], "memory": {"segment_length": 4, "combine": "alone"}},
    "window + memory": {"memory_layers": [0, 2], **WINDOW, "memory": {"segment_length": 4}},
    "full + memory": {"memory_layers": [1], "memory": {"segment_length": 4, "rule": "gated_delta", "decay": 0.9}},
    "convolution": {"memory_layers": [1], "memory": {**OWN, **TOKENS, "short_convolution": 3, "token_shift": True}},
    "shared": {
        "memory_layers": [0, 2],
        **WINDOW,
        "memory": {**OWN, **TOKENS, "short_convolution": 3, "state": "shared"},
    },
    "banks": {"memory_layers": [1], "memory": {"segment_length": 4, "options": {"num_memory_banks": 3}}},
    "multi": {"memory_layers": [1], "memory": {"type": "multi", "segment_length": 4}},
    "batch": {"memory_layers": [1], "memory": {"segment_length": 4, "scope": "batch"}},
}
OTHERS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {**SIZES, "head_dim": 12}),
    "mistral": (MistralConfig, MistralForCausalLM, {**SIZES, "sliding_window": 5}),
    "neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {name: SIZES[name] for name in SIZES if name != "num_key_value_heads"}),
}


class Bytes:
    """A tokenizer of one token a byte."""

    def __call__(self, text, *, add_special_tokens, verbose):
        return {"input_ids": [byte % 128 for byte in text.encode()]}


def senri(name: str) -> SenriForCausalLM:
    torch.manual_seed(0)
    return SenriForCausalLM(SenriConfig(**SIZES, **SENRI[name])).eval()


def other(name: str) -> torch.nn.Module:
    config, model, sizes = OTHERS[name]
    torch.manual_seed(0)
    return model(config(**sizes)).eval()


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("A line of a text that is read.\n" * 8)
    return str(path)


def settings(text: str, **changes: object) -> BytesSettings:
    values = {"lengths": [20, 3, 41], "formula_lengths": [16_777_216], "chunk_size": 7, "block_characters": 100}
    return BytesSettings(text=text, **{**values, **changes})


def measure(model, chosen: BytesSettings):
    subject = Subject(model, Bytes(), "tiny")
    (unit,) = bytes_units(subject, chosen)
    advanced = []
    result = unit.run(Scratch(None, float("inf"), advanced.append))
    assert sum(advanced) == unit.size == max(chosen.lengths)
    assert max(advanced) <= chosen.chunk_size
    return bytes_outcome(subject, chosen, [json.loads(json.dumps(result))])


def agree(model, tokens: int) -> None:
    """Read with the model, and compare every layer with the formula."""
    reader = open_reader(model)
    for chunk in torch.arange(tokens)[None].remainder(128).split(5, dim=1):
        reader.read(chunk)
    shapes = layer_shapes(model.config, model.dtype)
    found = layer_bytes(reader.cache)
    assert [one.key_value_bytes for one in found] == [shape.key_value_bytes(tokens) for shape in shapes]
    assert [one.state_bytes for one in found] == [shape.state_bytes for shape in shapes]
    assert sum(one.key_value_bytes for one in found) == reader.window_bytes()
    assert sum(one.state_bytes for one in found) == reader.memory_bytes()


@pytest.mark.parametrize("tokens", [1, 5, 6, 23])
@pytest.mark.parametrize("name", SENRI)
def test_formula_equals_what_a_senri_cache_holds(name, tokens):
    agree(senri(name), tokens)


@pytest.mark.parametrize("name", ["alone", "convolution"])
def test_states_stay_float32_in_a_model_at_half_precision(name):
    model = senri(name)
    wide = layer_shapes(model.config, torch.float32)
    agree(model.to(torch.bfloat16), 9)
    narrow = layer_shapes(model.config, torch.bfloat16)
    assert [shape.state_bytes for shape in narrow] == [shape.state_bytes for shape in wide]
    assert [2 * shape.token_bytes for shape in narrow] == [shape.token_bytes for shape in wide]


@pytest.mark.parametrize("tokens", [4, 5, 17])
@pytest.mark.parametrize("name", OTHERS)
def test_formula_equals_what_another_models_cache_holds(name, tokens):
    agree(other(name), tokens)


def test_formula_by_hand():
    # 2 key/value heads of 8 numbers in float32, keys and values.
    token = 2 * 2 * 8 * 4
    first, second, _ = layer_shapes(senri("alone").config, torch.float32)
    assert (first.kind, first.total_bytes(100)) == ("full attention", 100 * token)
    # M is 8 x 8 and z 8 numbers for 2 heads, once committed and once pending; the count is one int64.
    assert (second.kind, second.total_bytes(100)) == ("memory", 2 * 2 * (8 * 8 + 8) * 4 + 8)
    sliding = layer_shapes(senri("window + memory").config, torch.float32)[0]
    assert sliding.kind == "sliding window + memory"
    assert [sliding.key_value_bytes(tokens) for tokens in (1, 5, 6, 1000)] == [token, 5 * token, 5 * token, 5 * token]
    assert layer_shapes(senri("shared").config, torch.float32)[2].kind == "sliding window + memory of layer 0"


def test_a_routed_memory_stays_below_its_formula(text):
    config = SenriConfig(**SIZES, memory_layers=[1], memory={"type": "orthogonal", "segment_length": 4})
    torch.manual_seed(0)
    outcome = measure(SenriForCausalLM(config).eval(), settings(text))
    shape = layer_shapes(config, torch.float32)[1]
    states = [one["layers"][1]["state_bytes"] for one in outcome.results["measured"]]
    assert 0 < states[0] <= states[-1] <= shape.state_bytes
    assert not outcome.warnings
    assert "most that it can take" in outcome.tables[0].note
    assert outcome.tables[1].rows[1][-1] == f"at most {shape.state_bytes:,}"


@pytest.mark.parametrize("granularity", ["segment", "token"])
def test_the_formula_of_a_routed_memory_is_its_state_with_all_parts_written(granularity):
    config = SenriConfig(**SIZES, memory_layers=[1], memory={"type": "orthogonal", "granularity": granularity})
    branch = build_branch(config, 1).eval()
    full = {name: tensor + 1 for name, tensor in branch.allocate(branch.init_state(1)).items()}
    shape = layer_shapes(config, torch.float32)[1]
    assert shape.is_sparse
    assert sum(tensor.nbytes for tensor in from_dense(full).values()) == shape.state_bytes


def test_the_part_measures_at_every_length_and_agrees(text):
    model = senri("window + memory")
    outcome = measure(model, settings(text))
    measured = outcome.results["measured"]
    assert [one["tokens"] for one in measured] == [3, 20, 41]
    assert not outcome.warnings and outcome.results["agrees"]
    totals = [sum(layer["key_value_bytes"] + layer["state_bytes"] for layer in one["layers"]) for one in measured]
    assert totals[0] < totals[1] == totals[2]
    assert all(one["held_bytes"] >= total for one, total in zip(measured, totals, strict=True))
    assert all(one["process_bytes"] > 0 and one["gpu_peak_bytes"] is None for one in measured)
    lengths = outcome.tables[0].rows
    assert [row[0] for row in lengths] == ["3", "20", "41", "16,777,216"]
    assert [row[1] for row in lengths] == [f"{total:,}" for total in totals] + [""]
    assert [row[2] for row in lengths] == [f"{total:,}" for total in totals] + [f"{totals[-1]:,}"]
    assert lengths[-1][4] == f"{kv_cache_bytes(model.config, 16_777_216, torch.float32):,}"
    assert outcome.results["by_length"]["41"]["full_attention"] == kv_cache_bytes(model.config, 41, torch.float32)
    assert len(outcome.tables[1].rows) == 3
    assert outcome.counts == {"readings": 1, "tokens": 41, "lengths": 3}
    json.dumps(outcome.results)


def test_the_first_length_below_full_attention_is_named(text):
    model = senri("window + memory")
    outcome = measure(model, settings(text))
    shapes = layer_shapes(model.config, torch.float32)
    below = [
        tokens
        for tokens in range(1, 200)
        if sum(shape.total_bytes(tokens) for shape in shapes) < kv_cache_bytes(model.config, tokens, torch.float32)
    ]
    assert any(f"from {below[0]:,} tokens on" in sentence for sentence in outcome.summary)
    assert not any("tokens on." in sentence for sentence in measure(other("llama"), settings(text)).summary)


def test_another_model_is_measured_by_the_same_code(text):
    outcome = measure(other("llama"), settings(text, formula_lengths=[]))
    assert not outcome.warnings
    assert {row[1] for row in outcome.tables[1].rows} == {"full attention"}
    assert [row[5] for row in outcome.tables[0].rows] == ["1.00"] * 3


def test_a_session_counts_what_it_had_read(text):
    model = senri("full")
    session = open_reader(model)
    session.read(torch.arange(10)[None])
    subject = Subject(model, Bytes(), "tiny", session=session)
    chosen = settings(text, formula_lengths=[])
    result = bytes_units(subject, chosen)[0].run(Scratch(None, float("inf"), lambda work: None))
    outcome = bytes_outcome(subject, chosen, [result])
    assert [one["tokens"] for one in outcome.results["measured"]] == [13, 30, 51]
    assert not outcome.warnings


def test_a_measurement_that_is_not_the_formula_is_a_warning(text):
    subject, chosen = Subject(senri("alone"), Bytes(), "tiny"), settings(text)
    result = bytes_units(subject, chosen)[0].run(Scratch(None, float("inf"), lambda work: None))
    result["measured"][1]["layers"][1]["state_bytes"] += 4
    result["measured"][2]["layers"][0]["key_value_bytes"] -= 4
    warnings = bytes_outcome(subject, chosen, [result]).warnings
    assert len(warnings) == 2
    assert "Layer 0 (full attention): after 41 tokens its keys and values" in warnings[0]
    assert "Layer 1 (memory): after 20 tokens its memory state" in warnings[1]


def test_a_state_that_the_configuration_does_not_tell_is_only_measured(text):
    config = Qwen3NextConfig(
        **SIZES,
        head_dim=8,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    )
    torch.manual_seed(0)
    outcome = measure(Qwen3NextForCausalLM(config).eval(), settings(text))
    assert not outcome.warnings
    assert outcome.tables[1].rows[0][1] == "recurrent state"
    assert int(outcome.tables[1].rows[0][4].replace(",", "")) > 0
    assert outcome.tables[1].rows[0][5] == "not known"
    assert "only measured" in outcome.tables[0].note


def test_the_picture_has_two_lines_and_a_dot_for_every_measurement(text):
    (picture,) = measure(senri("sliding"), settings(text)).pictures
    full, formula, dots = picture.figure.axes[0].lines
    assert len(dots.get_xdata()) == 3
    assert list(full.get_xdata())[-1] == list(formula.get_xdata())[-1] == 16_777_216
    assert max(formula.get_ydata()) < max(full.get_ydata())


def test_a_text_that_is_too_short_is_refused(text):
    with pytest.raises(SenriError, match="has only 248 tokens"):
        bytes_units(Subject(senri("full"), Bytes(), "tiny"), settings(text, lengths=[10, 249]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("lengths", []), ("lengths", [0]), ("formula_lengths", [-1]), ("chunk_size", 0), ("block_characters", 0)],
)
def test_wrong_settings_are_refused(name, value):
    with pytest.raises(SenriError, match=name):
        settings("text.txt", **{name: value})
