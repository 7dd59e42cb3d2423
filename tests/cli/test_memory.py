import json
import os

import pytest
import torch

from senri.cli import memory as memory_command
from senri.memory import MemoryState
from senri.models import SenriForCausalLM, Session


@pytest.fixture
def second_session(senri, model_folder, tmp_path):
    path, text = tmp_path / "second.senri", tmp_path / "second.txt"
    text.write_text("Something else altogether, read by the same model. " * 5)
    assert senri("read", "--model", model_folder, "--text", text, "--session", path) == 0
    return path


def test_inspect_shows_every_head_and_writes_a_picture(senri, read_session, tmp_path, capsys):
    out = tmp_path / "look"
    assert senri("memory", "inspect", read_session, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "200 tokens read" in shown
    assert "effective" in shown
    values = json.loads((out / "memory.json").read_text())
    wanted = MemoryState.load(read_session).inspect()
    assert [head["norm"] for head in values["heads"]] == [row.norm for row in wanted]
    assert values["header"]["tokens_read"] == 200
    assert (out / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_shows_how_much_of_a_budget_was_written(senri, read_session, tmp_path, capsys):
    assert senri("memory", "inspect", read_session) == 0
    assert "written" not in capsys.readouterr().out
    state, counted = MemoryState.load(read_session), tmp_path / "counted.senri"
    for layer in state.layers.values():
        heads = layer["M"].shape[1]
        layer["written"] = 7000.0 + torch.arange(float(heads)).unsqueeze(0)
    state.save(counted)
    assert senri("memory", "inspect", counted) == 0
    shown = capsys.readouterr().out
    assert "written" in shown and all(str(7000 + head) in shown for head in range(heads))
    state.layers[9] = {name: x for name, x in layer.items() if name != "written"}  # layers may differ
    state.save(counted)
    assert senri("memory", "inspect", counted) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert {line.split("│")[4].strip() for line in rows if line.split("│")[1].strip() == "9"} == {""}
    assert len({line.count("│") for line in rows}) == 1


def test_diff_of_a_file_with_itself_is_zero(senri, read_session, second_session, tmp_path, capsys):
    out = tmp_path / "look"
    assert senri("memory", "diff", read_session, read_session, "--out", out) == 0
    heads = json.loads((out / "diff.json").read_text())["heads"]
    assert all(head["difference"] == 0 and head["cosine"] == pytest.approx(1) for head in heads)
    assert senri("memory", "diff", read_session, second_session, "--out", out) == 0
    heads = json.loads((out / "diff.json").read_text())["heads"]
    assert all(head["difference"] > 0 for head in heads)
    assert (out / "diff.png").exists()


def test_merge_adds_and_can_be_looked_into(senri, read_session, second_session, tmp_path, capsys):
    out = tmp_path / "both.senri"
    assert senri("memory", "merge", read_session, second_session, "--out", out) == 0
    first, second, both = (MemoryState.load(path) for path in (read_session, second_session, out))
    assert torch.allclose(both.layers[1]["M"], first.layers[1]["M"] + second.layers[1]["M"])
    assert both.header.tokens_read == first.header.tokens_read + second.header.tokens_read
    assert senri("memory", "inspect", out) == 0


def test_clean_lowers_the_rank_in_place_and_keeps_the_session_whole(senri, read_session, model_folder, capsys):
    before = MemoryState.load(read_session)
    assert senri("memory", "clean", read_session, "--energy", 1.0, "--max-rank", 2) == 0
    assert "rank after" in capsys.readouterr().out
    after = MemoryState.load(read_session)
    values = torch.linalg.svdvals(after.layers[1]["M"].double())
    assert (values[..., 2:] < 1e-5 * values[..., :1]).all()
    assert (values[..., 1] > 1e-4 * values[..., 0]).all()
    assert torch.equal(before.layers[1]["z"], after.layers[1]["z"])
    live = Session.load(read_session, SenriForCausalLM.from_pretrained(model_folder))
    assert live.tokens_read == 200
    assert live.source.tokens == 200


def test_clean_to_another_file_leaves_the_session(senri, read_session, tmp_path):
    content = read_session.read_bytes()
    out = tmp_path / "clean.senri"
    assert senri("memory", "clean", read_session, "--out", out, "--energy", 0.5) == 0
    assert read_session.read_bytes() == content
    assert out.exists()


def test_tables_fit_eighty_columns(senri, read_session, second_session, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    assert senri("memory", "inspect", read_session) == 0
    shown = capsys.readouterr().out.splitlines()
    heads = len(MemoryState.load(read_session).inspect())
    assert sum(line.startswith("│ 1 ") for line in shown) == heads
    assert not any(line.startswith("│   ") for line in shown)  # no row goes on in a second line


@pytest.mark.parametrize(
    ("value", "said"), [(68160.0, "6.82e4"), (1.2e-5, "1.2e-5"), (3.14159, "3.14"), (0.0, "0"), (2.5e12, "2.5e12")]
)
def test_numbers_are_short(value, said):
    assert memory_command._short(value) == said


def test_size_names_the_parts(senri, read_session, capsys):
    assert senri("memory", "size", read_session) == 0
    shown = capsys.readouterr().out
    assert f"{read_session.stat().st_size:,}" in shown
    assert f"{MemoryState.load(read_session).nbytes:,}" in shown


def test_what_cannot_be_done_is_said(complaint, read_session, tmp_path, senri, other_model_folder, text):
    assert "does not exist" in complaint("memory", "inspect", tmp_path / "none.senri")
    assert "not a safetensors file" in complaint("memory", "size", text)
    assert "energy_threshold is 2" in complaint("memory", "clean", read_session, "--energy", 2)
    assert "max_rank is 0" in complaint("memory", "clean", read_session, "--max-rank", 0)
    other = tmp_path / "other.senri"
    where = ["--model", other_model_folder, "--text", text, "--session", other]
    assert senri("read", *where, "--tokens", 60) == 0
    assert "different models" in complaint("memory", "merge", read_session, other, "--out", tmp_path / "c.senri")
    assert "different models" in complaint("memory", "diff", read_session, other)
    assert not (tmp_path / "c.senri").exists()


def test_a_full_disk_while_cleaning_in_place_loses_nothing(complaint, read_session, monkeypatch):
    content = read_session.read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in complaint("memory", "clean", read_session)
    assert read_session.read_bytes() == content
