"""Attention sinks: measured on the base, hidden while the first token is in the window, and worth having."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from senri.conversion import CalibrationSettings, ConversionResult, Preset, convert
from senri.errors import SenriError

WINDOW = 8


def settings() -> CalibrationSettings:
    return CalibrationSettings(
        tokens=120,
        sequence_length=40,
        block_characters=1000,
        seed=0,
        solve_gate=False,
        gate_low=0.01,
        gate_high=0.99,
        relative_floor=1e-4,
    )


def preset() -> Preset:
    return Preset(sliding_window=WINDOW, default_layer_type="sliding_attention", attention_sink=True)


@pytest.fixture
def converted(tmp_path: Path, bases: Any) -> tuple[ConversionResult, Path, Path]:
    folder = bases.save("llama", tmp_path / "base")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {i} birds fly over {i * 7} hills\n" for i in range(40)))
    return convert(folder, preset(), calibration=settings(), calibration_text=text), folder, text


@torch.no_grad()
def test_scores_and_values_are_the_bases_own_means(converted: tuple[ConversionResult, Path, Path]) -> None:
    result, folder, text = converted
    base = LlamaForCausalLM.from_pretrained(folder)
    ids = torch.tensor(result.tokenizer(text.read_text())["input_ids"])[:120].view(3, 40)
    attention: nn.Module = base.model.layers[0].self_attn
    x = base.model.layers[0].input_layernorm(base.model.embed_tokens(ids))

    def heads(projection: nn.Module) -> Tensor:
        return projection(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    positions = base.model.rotary_emb(x, torch.arange(40)[None])
    q, k = apply_rotary_pos_emb(heads(attention.q_proj), heads(attention.k_proj), *positions)
    first = k.repeat_interleave(2, dim=1)[:, :, :1]
    scores = (q @ first.transpose(-1, -2))[:, :, WINDOW:, 0] * attention.scaling
    sink = result.model.model.layers[0].self_attn.sink
    torch.testing.assert_close(sink.score, scores.mean(dim=(0, 2)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sink.value, heads(attention.v_proj)[:, :, 0].mean(dim=0), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_within_the_window_the_model_is_the_base(converted: tuple[ConversionResult, Path, Path]) -> None:
    result, folder, _ = converted
    base = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(3, 3 + 20)[None]
    expected, got = base(ids).logits, result.model(ids).logits
    torch.testing.assert_close(got[:, :WINDOW], expected[:, :WINDOW], atol=1e-4, rtol=1e-4)
    for layer in result.model.model.layers:
        layer.self_attn.sink.score.fill_(50.0)  # were it seen, it would take everything
    changed = result.model(ids).logits
    torch.testing.assert_close(changed[:, :WINDOW], got[:, :WINDOW])
    assert not torch.allclose(changed[:, WINDOW:], got[:, WINDOW:])


def test_a_sink_without_a_window_is_refused(tmp_path: Path, bases: Any) -> None:
    with pytest.raises(SenriError, match="attention_sink is on, but sliding_window is not set"):
        convert(bases.save("llama", tmp_path / "base"), Preset(attention_sink=True), calibration=settings())
