import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from senri.cli.continue_session import continued_elsewhere
from senri.cli.demo_facts import holds
from senri.errors import SenriError
from senri.models import SenriForCausalLM, Session

SMALL = ["tokens=300", "held_out_tokens=60", "context_tokens=80", "continue_tokens=10", "chunk_size=50"]


@pytest.fixture
def preset(tmp_path: Path, base_folder: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"base: {base_folder}\nmemory_layers: [1]\nsliding_window: 16\ndefault_layer_type: sliding_attention\n"
        "memory: {segment_length: 8, gate_init: 0.0}\n"
    )
    return path


def base_tokens(out: Path, text: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(out / "model")(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.slow
def test_the_demo_does_everything_and_a_second_run_keeps_the_model(senri, preset, text, tmp_path, capsys):
    out = tmp_path / "demo"
    words = ["demo", "--out", out, "--text", text, f"preset={preset}", *SMALL]
    assert senri(*words) == 0
    said = capsys.readouterr().out
    assert f"{out / 'report.html'}" in said and "facts found again: with memory" in said
    values = json.loads((out / "report.json").read_text())
    results = values["results"]
    assert results["continue_max_difference"] == 0
    assert list(results["perplexity"]) == ["base, full attention", "window alone", "window + memory"]
    assert {score["tokens"] for score in results["perplexity"].values()} == {59}
    hidden = sum(len(base_tokens(out, f" {fact['sentence']}")) for fact in results["facts"])
    assert results["reading"][-1]["tokens"] == 300 + hidden
    assert max(fact["hidden_at"] for fact in results["facts"]) <= 300 - 16
    readers = list(dict.fromkeys(one["reader"] for one in results["asked"]))
    assert readers[:2] == ["with memory", "memory off"] and readers[2].startswith("base, last")
    assert len(results["asked"]) == 3 * len(results["facts"]) and len(results["facts"]) > 3
    assert (out / "facts.png").read_bytes().startswith(b"\x89PNG")
    assert values["settings"]["tokens"] == 300
    assert values["command"].startswith("senri demo tokens=300") or "tokens=300" in values["command"]
    assert (out / "reading.png").read_bytes().startswith(b"\x89PNG")
    weights = (out / "model" / "model.safetensors").stat().st_mtime_ns
    assert senri(*words, "continue_tokens=5") == 0
    assert "converted already" in capsys.readouterr().out
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == weights
    page = (out / "report.html").read_text()
    assert "continue_tokens=5" in page
    changed = preset.read_text().replace("segment_length: 8", "segment_length: 4")
    preset.write_text(changed)
    assert senri(*words) == 0
    assert "converting" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "is_right"),
    [("Under The Blue Pot.", True), ("under the blue potluck", False), ("it is under the blue pot, I think", True)],
)
def test_an_answer_is_right_where_its_words_stand(said, is_right):
    assert holds(said, "under the blue pot") == is_right


def test_a_text_that_is_too_short_is_refused(complaint, preset, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    assert "needs 140" in complaint("demo", "--out", tmp_path / "demo", "--text", text, f"preset={preset}", *SMALL)


@pytest.mark.parametrize(
    ("word", "said"),
    [("preset=smolm_infini", "smollm_infini"), ("tokens=-1", "tokens is -1"), ("chunksize=4", "'chunk_size'")],
)
def test_wrong_settings_are_refused_before_any_work(complaint, tmp_path, text, word, said):
    assert said in complaint("demo", "--out", tmp_path / "demo", "--text", text, word)
    assert not (tmp_path / "demo" / "model").exists()


@pytest.mark.slow
def test_another_process_continues_to_the_same_bits(model_folder, read_session):
    live = Session.load(read_session, SenriForCausalLM.from_pretrained(model_folder))
    ids = torch.arange(12)[None]
    assert torch.equal(continued_elsewhere(model_folder, read_session, ids), live.logits(ids))


@pytest.mark.slow
def test_a_second_process_that_fails_is_said(model_folder, read_session):
    read_session.write_bytes(b"damaged")
    with pytest.raises(SenriError, match="second process.*safetensors"):
        continued_elsewhere(model_folder, read_session, torch.arange(3)[None])
