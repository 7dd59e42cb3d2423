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


def test_a_senri_model_is_scored_with_memory_and_without(senri, model_folder, text, tokenizer, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["eval", "perplexity", "--model", model_folder, "--text", text, "--tokens", 100, "--out", out]
    assert senri(*words, "chunk_size=30") == 0
    results = json.loads((out / "perplexity.json").read_text())["results"]
    ids = ids_of(text, tokenizer, 100)
    model = SenriForCausalLM.from_pretrained(model_folder)
    wanted = perplexity_of(Session(model).logits(ids), ids)
    with model.memory_disabled():
        alone = perplexity_of(Session(model).logits(ids), ids)
    assert results["window + memory"]["perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert results["window alone"]["perplexity"] == pytest.approx(alone, rel=1e-4)
    assert abs(wanted - alone) > 1e-3 * alone
    assert results["window alone"]["tokens"] == 99
    assert results["window alone"]["bytes"] == len(tokenizer.decode(ids[0, 1:]).encode())
    assert "tokens: 100" in (out / "perplexity.yaml").read_text()
    assert f"{results['window + memory']['perplexity']:.3f}" in capsys.readouterr().out


def test_any_other_model_is_scored_by_a_sliding_window(senri, base_folder, text, tokenizer, tmp_path):
    out = tmp_path / "out"
    words = ["eval", "perplexity", "--model", base_folder, "--text", text, "--tokens", 90, "--out", out]
    assert senri(*words, "window=200", "stride=100") == 0
    results = json.loads((out / "perplexity.json").read_text())["results"]
    ids = ids_of(text, tokenizer, 90)
    with torch.no_grad():
        wanted = perplexity_of(LlamaForCausalLM.from_pretrained(base_folder)(ids).logits, ids)
    assert results["sliding window of 200"]["perplexity"] == pytest.approx(wanted, rel=1e-4)


def test_suspicious_values_are_pointed_at(senri, model_folder, text, capsys, monkeypatch):
    monkeypatch.setattr("senri.evaluation.perplexity.UNTRAINED_ABOVE", 10.0)
    assert senri("eval", "perplexity", "--model", model_folder, "--text", text, "--tokens", 40) == 0
    assert "look again: window + memory: perplexity" in " ".join(capsys.readouterr().out.split())


def test_wrong_settings_are_refused(complaint, model_folder, base_folder, text):
    words = ["eval", "perplexity", "--text", text, "--model"]
    assert "tokens is 1" in complaint(*words, model_folder, "--tokens", 1)
    assert "window is -4" in complaint(*words, base_folder, "window=-4")
    assert "stride is 64" in complaint(*words, base_folder, "window=64", "stride=64")
    assert "'stride'" in complaint(*words, base_folder, "strid=64")
