"""Calibration: what it sets is what it promises, on the base's real activations."""

from pathlib import Path

import pytest
import torch

from senri.conversion import CalibrationSettings, Preset, convert
from senri.errors import SenriError
from senri.memory import MemoryConfig

TOKENS, LENGTH, WINDOW = 2048, 256, 16


def settings(**changes) -> CalibrationSettings:
    values = {
        "tokens": TOKENS,
        "sequence_length": LENGTH,
        "block_characters": 4096,
        "seed": 0,
        "solve_gate": True,
        "gate_low": 0.01,
        "gate_high": 0.99,
        "relative_floor": 1e-9,
    }
    return CalibrationSettings(**(values | changes))


def sample_ids(tokenizer) -> torch.Tensor:
    import pydoc_data.topics

    text = "".join(pydoc_data.topics.topics.values())[: 4 * TOKENS]
    return torch.tensor(tokenizer(text).input_ids[:TOKENS]).view(-1, LENGTH)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """The sample that `sample_ids` tokenises, as a file."""
    import pydoc_data.topics

    path = tmp_path / "sample.txt"
    path.write_text("".join(pydoc_data.topics.topics.values())[: 4 * TOKENS])
    return path


def attention_inputs(base, ids: torch.Tensor, layer: int) -> torch.Tensor:
    seen = []
    block = base.model.layers[layer]
    hook = block.self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        base(ids)
    hook.remove()
    return seen[0]


def test_queries_and_keys_of_the_base_become_white_per_head(bases, tmp_path: Path, text: Path) -> None:
    memory = MemoryConfig(calibration="whiten", segment_length=8)
    preset = Preset(memory_layers=[2], sliding_window=WINDOW, memory=memory)
    folder = bases.save("llama", tmp_path / "base")
    result = convert(folder, preset, calibration=settings(), calibration_text=text)
    base = bases.make("llama")
    x = attention_inputs(base, sample_ids(result.tokenizer), layer=2)
    attention, stored = base.model.layers[2].self_attn, result.model.model.layers[2].self_attn.memory.memory
    for projection, side, heads in ((attention.q_proj, "query", 4), (attention.k_proj, "key", 2)):
        vectors = projection(x).view(-1, heads, 8).transpose(0, 1).double()
        mean, whitening = getattr(stored, f"{side}_mean").double(), getattr(stored, f"{side}_whitening").double()
        white = (vectors - mean[:, None]) @ whitening
        assert white.mean(1).abs().max() < 1e-3
        covariance = white.transpose(1, 2) @ white / white.shape[1]
        assert (covariance - torch.eye(8)).abs().max() < 2e-2


def test_own_projections_see_white_inputs(bases, tmp_path: Path, text: Path) -> None:
    memory = MemoryConfig(combine="add", projections="own", num_heads=2, num_key_value_heads=2, key_dim=6, value_dim=5)
    folder = bases.save("llama", tmp_path / "base")
    result = convert(folder, Preset(memory_layers=[1], memory=memory), calibration=settings(), calibration_text=text)
    x = attention_inputs(bases.make("llama"), sample_ids(result.tokenizer), layer=1)
    keys = result.model.model.layers[1].self_attn.memory.inputs.k_proj(x).flatten(0, 1).double()
    assert keys.mean(0).abs().max() < 1e-2
    assert (keys.T.cov(correction=0) - torch.eye(12)).abs().max() < 5e-2


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
def test_the_gate_is_the_best_one_per_head(bases, tmp_path: Path, text: Path, kind: str) -> None:
    """No other gate brings a layer nearer to full attention, measured anew through the model's own layer."""
    preset = Preset(memory_layers=[0], sliding_window=WINDOW, memory=MemoryConfig(segment_length=8))
    folder = bases.save(kind, tmp_path / "base")
    wide = settings(gate_low=1e-9, gate_high=1 - 1e-9)
    result = convert(folder, preset, calibration=wide, calibration_text=text)
    ids = sample_ids(result.tokenizer)
    mixer = result.model.model.layers[0].self_attn
    full = convert(folder, Preset(), calibration=wide).model.model.layers[0].self_attn
    heads: list[torch.Tensor] = []
    for layer, model in ((mixer, result.model), (full, None)):
        hook = layer.o_proj.register_forward_pre_hook(lambda module, args: heads.append(args[0]))
        with torch.no_grad():
            if model is not None:
                model(ids)
                kept = mixer.memory_gate.weight.clone()
                for shift in (-0.05, 0.05):
                    mixer.memory_gate.weight.copy_(kept + shift)
                    model(ids)
                mixer.memory_gate.weight.copy_(kept)
            else:
                convert_inputs(full, layer_inputs(result.model, ids))
        hook.remove()
    best, lower, higher, target = (out[:, WINDOW:].unflatten(-1, (4, 8)).double() for out in heads)

    def loss(out: torch.Tensor) -> torch.Tensor:
        return (out - target).square().sum(dim=(0, 1, 3))

    gates = torch.tensor(result.record["calibration"]["gates"][0])
    inside = (gates > 1e-6) & (gates < 1 - 1e-6)
    assert inside.any(), "no head has its optimum inside: the test sees nothing"
    assert (loss(best) < loss(lower))[inside].all()
    assert (loss(best) < loss(higher))[inside].all()
    torch.testing.assert_close(torch.sigmoid(mixer.memory_gate.weight.double()), gates.double(), rtol=1e-4, atol=1e-9)


def layer_inputs(model, ids: torch.Tensor) -> dict:
    """Arguments of the first layer's mixer."""
    seen = []
    hook = model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    model(ids)
    hook.remove()
    return seen[0]


def convert_inputs(full, seen) -> None:
    from senri.mixers.context import MixerMasks

    args, kwargs = seen
    full(*args, **(kwargs | {"masks": MixerMasks(), "past_key_values": None}))


def test_gates_stay_in_their_bounds_or_as_configured(bases, tmp_path: Path, text: Path) -> None:
    folder = bases.save("llama", tmp_path / "base")
    preset = Preset(memory_layers=[0, 1], sliding_window=WINDOW, memory=MemoryConfig(gate_init=-2.5, segment_length=8))
    narrow = convert(folder, preset, calibration=settings(gate_low=0.4, gate_high=0.41), calibration_text=text)
    for layer in (0, 1):
        gates = torch.sigmoid(narrow.model.model.layers[layer].self_attn.memory_gate.weight)
        assert ((gates > 0.399) & (gates < 0.411)).all()
    kept = convert(folder, preset, calibration=settings(solve_gate=False)).model
    assert kept.model.layers[0].self_attn.memory_gate.weight.tolist() == [-2.5] * 4


def test_a_text_no_longer_than_the_window_is_refused(bases, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    preset = Preset(memory_layers=[0], sliding_window=64, memory=MemoryConfig(segment_length=8))
    with pytest.raises(SenriError, match=r"short\.txt is not longer than the window of 64 tokens"):
        convert(bases.save("llama", tmp_path / "base"), preset, calibration=settings(), calibration_text=short)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens of the calibration is 0"),
        ({"gate_low": 0.0}, "gate_low 0.0"),
        ({"gate_low": 0.6, "gate_high": 0.5}, "gate_low 0.6"),
        ({"relative_floor": 0.0}, "relative_floor"),
    ],
)
def test_bad_settings_are_named(change: dict, message: str) -> None:
    with pytest.raises(SenriError, match=message):
        settings(**change)


def test_reading_layers_begin_with_the_writing_layers_maps(bases, tmp_path: Path, text: Path) -> None:
    knobs = {"combine": "add", "projections": "own", "num_heads": 2, "key_dim": 8, "value_dim": 8, "state": "shared"}
    preset = Preset(memory_layers=[0, 2], memory=MemoryConfig(**knobs))
    base = bases.save("llama", tmp_path / "base")
    model = convert(base, preset, calibration_text=text, calibration=settings(solve_gate=False)).model
    source = bases.make("llama")
    mixers = [model.model.layers[layer].self_attn for layer in (0, 2)]
    ids = sample_ids(bases.tokenizer())
    for layer, projection in zip((0, 2), (mixers[0].memory.inputs.k_proj, mixers[1].memory.inputs.q_proj), strict=True):
        x = attention_inputs(source, ids, layer).flatten(0, 1)
        made = projection(x)
        torch.testing.assert_close(made.mean(0), torch.zeros(16), atol=1e-3, rtol=0)
        white = made.T @ made / len(made)
        torch.testing.assert_close(white, torch.eye(16), atol=0.05, rtol=0)
    with pytest.raises(SenriError, match="solve_gate"):
        gate = Preset(memory_layers=[0, 2], sliding_window=WINDOW, memory=MemoryConfig(**SHARED_GATE))
        convert(base, gate, calibration_text=text, calibration=settings())


SHARED_GATE = {"projections": "own", "state": "shared", "num_heads": 4, "num_key_value_heads": 2}


def test_an_eigenbasis_is_that_of_the_keys(bases, tmp_path: Path, text: Path) -> None:
    knobs = {"type": "orthogonal", "segment_length": 8, "options": {"basis": "eigen"}}
    preset = Preset(memory_layers=[2], memory=MemoryConfig(**knobs))
    base = bases.save("llama", tmp_path / "base")
    model = convert(base, preset, calibration_text=text, calibration=settings(solve_gate=False)).model
    x = attention_inputs(bases.make("llama"), sample_ids(bases.tokenizer()), 2)
    mixer = model.model.layers[2].self_attn
    keys = mixer.k_proj(x).unflatten(-1, (2, 8)).flatten(0, 1).transpose(0, 1)
    centred = keys - keys.mean(1, keepdim=True)
    turned = centred @ mixer.memory.memory.basis
    covariance = turned.mT @ turned / keys.shape[1]
    off_diagonal = covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-3 * covariance.diagonal(dim1=-2, dim2=-1).max()
    assert not torch.allclose(mixer.memory.memory.basis[0], torch.eye(8))
    with pytest.raises(SenriError, match="'eigen' has no meaning for whitened keys"):
        convert(
            base, Preset(memory_layers=[2], memory=MemoryConfig(calibration="whiten", **knobs)), calibration_text=text
        )
