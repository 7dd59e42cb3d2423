import dataclasses
import importlib
import json
import os

import pytest

from senri.errors import SenriError
from senri.evaluation import PARTS, Subject, default_settings, evaluate, write_index
from senri.evaluation.evaluate import run_name

evaluation = importlib.import_module("senri.evaluation.evaluate")


@pytest.fixture
def chosen(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("It rained for a week, and the river rose. " * 8)
    return dataclasses.replace(default_settings().perplexity, text=str(book), tokens=120, probe_tokens=20)


def test_a_run_leaves_numbers_settings_pictures_and_a_page(senri_subject, chosen, tmp_path):
    found = evaluate(
        senri_subject, "perplexity", chosen, out=tmp_path / "out", command=["senri", "eval"], progress=False
    )
    folder = tmp_path / "out" / "perplexity-tiny-senri"
    assert found.folder == folder
    result = json.loads((folder / "result.json").read_text())
    assert result["settings"] == dataclasses.asdict(chosen)
    assert {"torch", "transformers", "senri", "python"} <= {*result["versions"]}
    assert (result["part"], result["model"], result["command"]) == ("perplexity", "tiny senri", "senri eval")
    assert result["counts"] == {"documents": 1, "tokens": 119}
    assert (folder / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    assert result["headline"] in page
    assert "data:image/png;base64," in page
    assert "viewport" in page


def test_finished_work_is_not_done_again_unless_something_changed(senri_subject, chosen, tmp_path):
    def resumed(settings):
        return evaluate(senri_subject, "perplexity", settings, out=tmp_path / "out", progress=False).done.resumed

    assert resumed(chosen) == 0
    assert resumed(chosen) == 3
    assert resumed(dataclasses.replace(chosen, tokens=100)) == 0
    assert resumed(dataclasses.replace(chosen, tokens=100)) == 3
    book = tmp_path / "book.txt"
    book.write_text(book.read_text() + "And then it stopped.")
    assert resumed(dataclasses.replace(chosen, tokens=100)) == 0


def test_finished_work_holds_for_copies_of_the_same_files(senri_subject, chosen, tmp_path, monkeypatch):
    def resumed(model, text):
        subject, settings = dataclasses.replace(senri_subject, source=str(model)), {"text": str(text)}
        settings = dataclasses.replace(chosen, **settings)
        return evaluate(subject, "perplexity", settings, out=tmp_path / "out", progress=False).done.resumed

    for place in ("one", "other"):
        (tmp_path / place / "books").mkdir(parents=True)
        (tmp_path / place / "books" / "a.txt").write_text("It rained for a week, and the river rose. " * 8)
        (tmp_path / place / "config.json").write_text("{}")
        (tmp_path / place / "model.safetensors").write_bytes(b"weights")
    one, other = tmp_path / "one", tmp_path / "other"
    os.utime(other / "books" / "a.txt", (1, 1))
    assert resumed(one, one / "books") == 0
    assert resumed(other, other / "books") == 3
    monkeypatch.chdir(tmp_path)
    assert resumed("one", "other/books") == 3
    (one / "model.safetensors").write_bytes(b"changed")  # of the same length
    assert resumed("one", "other/books") == 0
    text = (other / "books" / "a.txt").read_text().replace("week", "year")
    (other / "books" / "a.txt").write_text(text)
    assert resumed("one", "other/books") == 0
    (other / "books" / "a.txt").rename(other / "books" / "b.txt")
    assert resumed("one", "other/books") == 0


def test_what_is_named_often_is_looked_at_once_and_a_pipe_not_at_all(senri_subject, chosen, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for who writes
    read = []
    monkeypatch.setattr(evaluation, "content_digest", lambda files, folder: read.append(folder) or "digest")
    named = {"a": str(tmp_path / "book.txt"), "b": [str(tmp_path / "book.txt")], "c": str(tmp_path / "pipe")}
    monkeypatch.setattr(evaluation, "asdict", lambda settings: named)
    evaluation._identity(senri_subject, "perplexity", chosen)
    assert read == [tmp_path]


def test_a_report_gathers_runs_and_passes_over_damaged_ones(senri_subject, base_subject, chosen, tmp_path):
    out = tmp_path / "out"
    for subject in (senri_subject, base_subject):
        evaluate(subject, "perplexity", chosen, out=out, label="a & b", progress=False)
    (out / "broken").mkdir()
    (out / "broken" / "result.json").write_text('{"part": "perplexity"')
    page = write_index(out).read_text()
    assert page.count('<section class="part"') == 2
    assert "Perplexity (a &amp; b)" in page


def test_without_a_folder_nothing_is_written(base_subject, chosen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert evaluate(base_subject, "perplexity", chosen, progress=False).folder is None
    assert sorted(tmp_path.iterdir()) == before


def test_names_of_folders_hold_no_separators():
    assert run_name("needle", "a/b c", "x:y") == "needle-x-y-a-b-c"


def test_wrong_calls_are_refused(base_subject, chosen):
    with pytest.raises(SenriError, match="did you mean 'needle'"):
        evaluate(base_subject, "needles")
    with pytest.raises(SenriError, match="NeedleSettings, not a PerplexitySettings"):
        evaluate(base_subject, "needle", chosen)
    with pytest.raises(SenriError, match="memory"):
        evaluate(base_subject, "memory", progress=False)


def test_every_part_has_settings_of_its_name():
    settings = default_settings()
    for name, part in PARTS.items():
        assert isinstance(getattr(settings, name), part.settings)


def test_another_model_has_another_identity(senri_subject, base_subject):
    one = Subject(base_subject.model, base_subject.tokenizer, "renamed")
    assert one.identity() == base_subject.identity() != senri_subject.identity()


def test_other_weights_and_other_sessions_have_other_identities(senri_subject):
    import copy

    import torch

    from senri.models import Session

    model = copy.deepcopy(senri_subject.model)
    assert dataclasses.replace(senri_subject, model=model).identity() == senri_subject.identity()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    assert dataclasses.replace(senri_subject, model=model).identity() != senri_subject.identity()
    identities = set()
    for token in (3, 4):
        session = Session(senri_subject.model)
        session.read(torch.full((1, 20), token))
        identities.add(dataclasses.replace(senri_subject, session=session).identity())
    assert len(identities) == 2
