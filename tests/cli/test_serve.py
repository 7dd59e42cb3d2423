import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from senri.cli import serve as serve_command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_the_server_answers_and_lists_its_models(model_folder, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    port = free_port()
    words = ["serve", "--model", str(model_folder), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "senri.cli", *words])
    try:
        answer = asked(f"http://127.0.0.1:{port}", model_folder)
        models = fetched(f"http://127.0.0.1:{port}/v1/models")
    finally:
        process.terminate()
        process.wait(30)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert "data" in models


def asked(url, model_folder):
    body = {
        "model": str(model_folder),
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 3,
        "stream": False,
    }
    deadline = time.monotonic() + 120
    while True:
        try:
            return fetched(f"{url}/v1/chat/completions", body)
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def fetched(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_a_port_that_is_taken_is_said(complaint, model_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "choose another --port" in complaint("serve", "--model", model_folder, "--port", taken.getsockname()[1])


def test_what_cannot_be_served_is_said(complaint, base_folder, model_folder, tmp_path, monkeypatch):
    assert "not a Senri model" in complaint("serve", "--model", base_folder)
    assert "does not exist" in complaint("serve", "--model", tmp_path / "none")
    assert "port is 0" in complaint("serve", "--model", model_folder, "--port", 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    assert "pip install 'senri[serve]'" in complaint("serve", "--model", model_folder)


def test_the_server_knows_the_model_by_the_name_that_was_typed(senri, model_folder, monkeypatch):
    given = []
    monkeypatch.setattr(serve_command, "run_server", given.append)
    monkeypatch.chdir(model_folder.parent)
    assert senri("serve", "--model", f"./{model_folder.name}", "--port", free_port()) == 0
    assert given[0][:2] == ["serve", f"./{model_folder.name}"]
