import json
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from senri.data import TokenStream, open_document
from senri.models import SenriForCausalLM, Session


def ids_of(text, tokenizer, count):
    return torch.tensor([list(TokenStream(open_document(text), tokenizer, 65536))[:count]])


def perplexity_of(logits, ids):
    return math.exp(torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:]).item())


def result_in(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_senri_model_is_scored_with_memory_and_without(senri, model_folder, text, tokenizer, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["eval", "perplexity", "--model", model_folder, "--text", text, "--tokens", 100, "--out", out]
    assert senri(*words, "chunk_size=30") == 0
    result = result_in(out / "perplexity-model")
    scores = result["results"]["perplexity"]
    ids = ids_of(text, tokenizer, 100)
    model = SenriForCausalLM.from_pretrained(model_folder)
    wanted = perplexity_of(Session(model).logits(ids), ids)
    with model.memory_disabled():
        alone = perplexity_of(Session(model).logits(ids), ids)
    assert scores["window + memory"]["perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert scores["window alone"]["perplexity"] == pytest.approx(alone, rel=1e-4)
    assert abs(wanted - alone) > 1e-3 * alone
    assert scores["window alone"]["tokens"] == 99
    assert scores["window alone"]["bytes"] == len(tokenizer.decode(ids[0, 1:]).encode())
    assert f"{scores['window + memory']['perplexity']:.3f}" in capsys.readouterr().out
    assert result["results"]["causality"]["is_causal"]
    assert result["settings"]["tokens"] == 100
    assert "tokens: 100" in (out / "perplexity-model" / "settings.yaml").read_text()
    assert result["command"].startswith(f"senri eval perplexity --model {model_folder} --out {out}")
    assert "chunk_size=30" in result["command"]


def test_any_other_model_is_scored_by_a_sliding_window(senri, base_folder, text, tokenizer, tmp_path):
    words = ["eval", "perplexity", "--model", base_folder, "--text", text, "--tokens", 90, "--out", tmp_path / "out"]
    assert senri(*words, "window=200", "stride=100") == 0
    scores = result_in(tmp_path / "out" / "perplexity-base")["results"]["perplexity"]
    ids = ids_of(text, tokenizer, 90)
    with torch.no_grad():
        wanted = perplexity_of(LlamaForCausalLM.from_pretrained(base_folder)(ids).logits, ids)
    assert scores["sliding window of 200"]["perplexity"] == pytest.approx(wanted, rel=1e-4)


def test_a_session_is_gone_on_from(senri, model_folder, read_session, text, tokenizer, tmp_path):
    words = ["eval", "perplexity", "--model", model_folder, "--text", text, "--tokens", 50]
    assert senri(*words, "--session", read_session, "--out", tmp_path / "out", "--label", "after") == 0
    result = result_in(tmp_path / "out" / "perplexity-after-model")
    ids = ids_of(text, tokenizer, 50)
    session = Session.load(read_session, SenriForCausalLM.from_pretrained(model_folder))
    wanted = perplexity_of(session.logits(ids), ids)
    assert result["results"]["perplexity"]["window + memory"]["perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert result["session_tokens"] == 200


def test_documents_are_scored_apart_or_as_one(senri, model_folder, tmp_path, tokenizer):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt").write_text("The first book says that it is short.\n")
    (folder / "b.txt").write_text("The second book says that it is shorter.\n")
    words = ["eval", "perplexity", "--model", model_folder, "--text", folder, "--out", tmp_path / "out"]
    assert senri(*words, "--label", "reset", "state=reset", "probe_tokens=8") == 0
    reset = result_in(tmp_path / "out" / "perplexity-reset-model")
    assert senri(*words, "--label", "carried", "state=carried", "probe_tokens=8") == 0
    carried = result_in(tmp_path / "out" / "perplexity-carried-model")
    model = SenriForCausalLM.from_pretrained(model_folder)
    parts = [ids_of(folder / name, tokenizer, 1000) for name in ("a.txt", "b.txt")]
    nats = [math.log(perplexity_of(Session(model).logits(ids), ids)) * (ids.shape[1] - 1) for ids in parts]
    found = reset["results"]["perplexity"]["window + memory"]
    assert found["nats"] == pytest.approx(sum(nats), rel=1e-4)
    assert found["tokens"] == sum(ids.shape[1] - 1 for ids in parts)
    whole = torch.cat(parts, dim=1)
    wanted = perplexity_of(Session(model).logits(whole), whole)
    assert carried["results"]["perplexity"]["window + memory"]["perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert (reset["counts"]["documents"], carried["counts"]["documents"]) == (2, 2)


def test_suspicious_values_are_pointed_at(senri, model_folder, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("senri.evaluation.health.UNTRAINED_ABOVE", 10.0)
    words = ["eval", "perplexity", "--model", model_folder, "--text", text, "--tokens", 70, "--out", tmp_path]
    assert senri(*words) == 0
    assert "look again: window + memory: perplexity" in " ".join(capsys.readouterr().out.split())


def test_the_same_command_goes_on_where_it_stopped(senri, model_folder, tmp_path, monkeypatch, capsys):
    from senri.evaluation.needle import units

    words = [
        "eval",
        "needle",
        "--model",
        model_folder,
        "--out",
        tmp_path,
        "lengths=[400,300]",
        "samples=1",
        "depths=[0.0]",
    ]
    ask, asked = units.ask, []

    def interrupted(reader, haystack, question, *rest):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(question)
        return ask(reader, haystack, question, *rest)

    monkeypatch.setattr(units, "ask", interrupted)
    assert senri(*words) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "needle-model" / "result.json").exists()
    monkeypatch.setattr(units, "ask", ask)
    assert senri(*words) == 0
    resumed = result_in(tmp_path / "needle-model")
    assert resumed["units"] == {"all": 2, "of_earlier_runs": 1}
    assert senri(*words, "--label", "afresh") == 0
    assert result_in(tmp_path / "needle-afresh-model")["results"]["cells"] == resumed["results"]["cells"]


def test_a_suite_makes_one_report(senri, model_folder, base_folder, text, tmp_path):
    out = tmp_path / "out"
    data = tmp_path / "lambada.jsonl"
    data.write_text(json.dumps({"text": "the sum of two and two is four"}) + "\n")
    words = [
        "suite=[perplexity,lambada,memory]",
        "memory.tokens=60",
        f"memory.text={text}",
        f"lambada.data={data}",
        f"perplexity.text={text}",
        "perplexity.tokens=80",
    ]
    for model in (model_folder, base_folder):
        assert senri("eval", "suite", "--model", model, "--out", out, *words) == 0
    page = (out / "report.html").read_text()
    assert page.count('<section class="part"') == 5  # three of the Senri model, two of the base
    assert f"senri eval suite --model {model_folder}" in page
    assert "http://" not in page and "https://" not in page


def test_wrong_settings_are_refused(complaint, model_folder, base_folder, text, tmp_path):
    words = ["eval", "perplexity", "--text", text, "--out", tmp_path, "--model"]
    assert "tokens is 1" in complaint(*words, model_folder, "--tokens", 1)
    assert "window is -4" in complaint(*words, base_folder, "window=-4")
    assert "stride is 64" in complaint(*words, base_folder, "window=64", "stride=64")
    assert "'stride'" in complaint(*words, base_folder, "strid=64")
    assert "no measurement" in complaint("eval", "suite", "--model", base_folder, "suite=[needles]")
    assert "did you mean 'needle'" in complaint("eval", "suite", "--model", base_folder, "suite=[needles]")


def test_wrong_models_and_sessions_are_refused(complaint, base_folder, read_session, text, tmp_path):
    words = ["eval", "perplexity", "--out", tmp_path, "--model"]
    assert "does not exist" in complaint(*words, tmp_path / "nothing")
    assert "does not exist" in complaint(*words, base_folder, "--session", tmp_path / "nothing.senri")
    assert "no Senri model" in complaint(*words, base_folder, "--session", read_session)
    assert "device is 'cuda:7'" in complaint(*words, base_folder, "device=cuda:7")
    assert "cannot be read" in complaint("eval", "lambada", "--model", base_folder, f"data={tmp_path / 'no.jsonl'}")
