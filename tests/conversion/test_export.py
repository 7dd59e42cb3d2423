"""A model exported with its code works where the package is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from senri.conversion.export import export_remote_code
from senri.errors import SenriError
from senri.models import SenriConfig, SenriForCausalLM

WITHOUT_SENRI = """
import sys
sys.modules["senri"] = None  # as if it were not installed
import torch
from transformers import AutoModel, AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
ids = torch.arange(1, 30)[None] % 50
torch.save((model(ids).logits, model.generate(ids, max_new_tokens=5, do_sample=False)), sys.argv[2])
model.save_pretrained(sys.argv[3])
assert AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True) is not None
"""


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, SenriForCausalLM]:
    config = SenriConfig(
        vocab_size=53,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        sliding_window=8,
        memory_layers=[1],
        memory={"segment_length": 4, "gate_init": 0.0},
    )
    model = SenriForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_exported_model_needs_no_package(saved: tuple[Path, SenriForCausalLM], tmp_path: Path) -> None:
    folder, model = saved
    export_remote_code(folder, tmp_path / "out")
    arguments = [str(tmp_path / name) for name in ("out", "result.pt", "again")]
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", WITHOUT_SENRI, *arguments], check=True, env=environment, timeout=240)
    logits, generated = torch.load(tmp_path / "result.pt")
    ids = torch.arange(1, 30)[None] % 50
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids).logits)
    assert torch.equal(generated, model.generate(ids, max_new_tokens=5, do_sample=False))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["AutoModelForCausalLM"]
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_export_refuses_what_is_not_a_senri_model(saved: tuple[Path, SenriForCausalLM], tmp_path: Path) -> None:
    with pytest.raises(SenriError, match="not a Senri model folder"):
        export_remote_code(tmp_path, tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(SenriError, match="is in use"):
        export_remote_code(saved[0], tmp_path / "used")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SenriError, match="cannot be exported"):
        export_remote_code(saved[0], tmp_path / "file" / "model")
