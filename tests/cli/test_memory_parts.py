"""`senri memory` on memories with several matrices a head, and on models that have read nothing."""

import json

import pytest

from senri.memory import MemoryState

KINDS = {
    "banks": {"options": {"num_memory_banks": 2, "segments_per_bank": 1}},
    "multi": {"type": "multi", "rule": "linear", "options": {"num_memories": 3}},
    "orthogonal": {"type": "orthogonal"},
}


@pytest.fixture(params=list(KINDS))
def made(request, make_model):
    return make_model(memory={"segment_length": 8, **KINDS[request.param]})


@pytest.fixture
def sessions(senri, made, text, tmp_path):
    paths = [tmp_path / "one.senri", tmp_path / "two.senri"]
    other = tmp_path / "other.txt"
    other.write_text("Something else altogether, read by the same model. " * 5)
    for path, source in zip(paths, (text, other), strict=True):
        assert senri("read", "--model", made, "--text", source, "--session", path, "--tokens", "60") == 0
    return paths


def test_every_matrix_is_shown_compared_merged_and_cleaned(senri, sessions, tmp_path, capsys):
    one, two = sessions
    assert senri("memory", "inspect", one, "--out", tmp_path / "look") == 0
    shown = capsys.readouterr().out
    heads = json.loads((tmp_path / "look" / "memory.json").read_text())["heads"]
    assert len({(head["head"], head["part"]) for head in heads}) == len(heads) > 2
    assert all(f"{head['head']}, part {head['part']} " in shown for head in heads)
    assert senri("memory", "diff", one, two, "--out", tmp_path / "look") == 0
    differences = json.loads((tmp_path / "look" / "diff.json").read_text())["heads"]
    assert any(row["difference"] > 0 for row in differences)
    assert senri("memory", "merge", one, two, "--out", tmp_path / "both.senri") == 0
    norms = {
        path: {(row.head, row.part): row.norm for row in MemoryState.load(path).inspect()}
        for path in (one, two, tmp_path / "both.senri")
    }
    assert norms[tmp_path / "both.senri"].keys() == norms[one].keys() | norms[two].keys()
    assert senri("memory", "clean", one, "--energy", "0.5") == 0
    assert all(row.effective_rank < 4 for row in MemoryState.load(one).inspect())


def test_a_cleaned_session_reads_on(senri, sessions, made, text, capsys):
    assert senri("memory", "clean", sessions[0]) == 0
    assert senri("read", "--model", made, "--text", text, "--session", sessions[0], "--tokens", "90") == 0
    assert "90 tokens read" in capsys.readouterr().out


def test_the_size_of_a_model_is_what_a_full_session_has(senri, made, sessions, capsys):
    assert senri("memory", "size", made) == 0
    fullest = int(capsys.readouterr().out.split("fullest: ")[1].split()[0].replace(",", ""))
    state = MemoryState.load(sessions[0])
    table = sum(tensors["touched"].nbytes for tensors in state.layers.values() if "touched" in tensors)
    assert state.nbytes <= fullest + table
    if not table:
        assert state.nbytes == fullest


def test_a_model_without_memory_is_said_to_have_none(senri, make_model, capsys):
    assert senri("memory", "size", make_model(memory_layers=[], memory=None)) == 0
    assert "no memory: 0 bytes" in capsys.readouterr().out
    assert senri("memory", "size", "pythia") == 0
    assert "no memory: 0 bytes" in capsys.readouterr().out


def test_an_unknown_name_and_a_folder_of_another_kind_are_refused(senri, base_folder, tmp_path, capsys):
    assert senri("memory", "size", "infni") == 2
    assert "did you mean 'infini'" in capsys.readouterr().err
    assert senri("memory", "size", base_folder) == 2
    assert "not a Senri model" in capsys.readouterr().err
    assert senri("memory", "size", tmp_path) == 2
    assert "not a model folder" in capsys.readouterr().err
