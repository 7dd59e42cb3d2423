from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from senri.models import SenriForCausalLM

PRESET = """
memory_layers: [1]
sliding_window: 512
default_layer_type: sliding_attention
memory: {segment_length: 8, gate_init: -30.0}
"""


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(PRESET)
    return path


def test_a_converted_folder_holds_the_base_and_a_memory(senri, base_folder, preset, text, tmp_path, capsys):
    out = tmp_path / "model"
    words = ["convert", "--base", base_folder, "--preset", preset, "--out", out, "--calibration-text", text]
    assert senri(*words, "memory.rule=delta") == 0
    shown = capsys.readouterr().out
    assert "Conversion" in shown
    assert f"written to {out}" in shown.replace("\n", "")
    model = SenriForCausalLM.from_pretrained(out)
    assert model.config.memory["rule"] == "delta"
    ids = torch.arange(40)[None]
    with torch.no_grad(), model.memory_disabled():
        wanted = LlamaForCausalLM.from_pretrained(base_folder)(ids).logits
        assert (model(ids).logits - wanted).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("memory_layers=[7]", "7"),
        ("memory_layers=[-1]", "-1"),
        ("memory.ruel=delta", "'memory.rule'"),
        ("memory.segment_length=0", "segment_length is 0"),
        ("memory.segment_length=long", "segment_length"),
        ("sliding_window=0", "sliding_window is 0"),
    ],
)
def test_wrong_knobs_are_refused_and_nothing_is_written(complaint, base_folder, preset, tmp_path, word, said):
    out = tmp_path / "model"
    complained = complaint("convert", "--base", base_folder, "--preset", preset, "--out", out, word)
    assert said.strip("'").split(".")[-1] in complained
    assert not out.exists()


def test_unknown_presets_and_bases_are_refused(complaint, base_folder, preset, tmp_path):
    out = tmp_path / "model"
    assert "'smollm_infini'" in complaint("convert", "--base", base_folder, "--preset", "smollm_inifni", "--out", out)
    assert "no folder" in complaint("convert", "--base", "./nowhere", "--preset", preset, "--out", out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("precious")
    assert "not a Senri model" in complaint(
        "convert", "--base", base_folder, "--preset", preset, "--out", tmp_path / "full"
    )
