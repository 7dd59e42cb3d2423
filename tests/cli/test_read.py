import os
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from senri.cli import main
from senri.cli import read as read_command
from senri.data import TokenStream, open_document
from senri.memory import MemoryState
from senri.models import SenriForCausalLM, Session


def arguments(model: Path, text: Path, session: Path, *more: object) -> list[str]:
    """Return a command line for chunks of 50 tokens; settings among `more` go to the end and win."""
    words = [str(word) for word in more]
    overrides = [word for word in words if re.match(r"\w+=", word)]
    options = [word for word in words if word not in overrides]
    places = ["--model", str(model), "--text", str(text), "--session", str(session)]
    return ["read", *places, *options, "chunk_size=50", *overrides]


def tokens_of(text: Path, tokenizer) -> list[int]:
    return list(TokenStream(open_document(text), tokenizer, 65536))


def logits_after(session: Path, model: Path) -> torch.Tensor:
    return Session.load(session, SenriForCausalLM.from_pretrained(model)).logits(torch.tensor([[5, 6, 7]]))


def test_a_text_is_read_to_its_end(senri, model_folder, text, session, tokenizer, capsys):
    ids = tokens_of(text, tokenizer)
    assert senri(*arguments(model_folder, text, session)) == 0
    live = Session.load(session, SenriForCausalLM.from_pretrained(model_folder))
    assert live.tokens_read == len(ids)
    assert (live.source.name, live.source.tokens) == ("book.txt", len(ids))
    assert f"{len(ids):,} tokens read" in capsys.readouterr().out
    assert (session.parent / "book.read.yaml").read_text().splitlines()[:2] == ["tokens: all", "chunk_size: 50"]


def test_reading_in_two_goes_equals_reading_in_one(senri, model_folder, text, session, tmp_path):
    for tokens in (150, 400):
        assert senri(*arguments(model_folder, text, session, "--tokens", tokens)) == 0
    whole = tmp_path / "whole.senri"
    assert senri(*arguments(model_folder, text, whole, "--tokens", 400)) == 0
    assert torch.equal(logits_after(session, model_folder), logits_after(whole, model_folder))


def test_a_finished_text_is_not_read_again(senri, model_folder, text, session, capsys):
    words = arguments(model_folder, text, session)
    assert senri(*words) == 0
    before = session.read_bytes()
    assert senri(*words) == 0
    assert "to its end before" in capsys.readouterr().out
    assert session.read_bytes() == before
    assert senri(*arguments(model_folder, text, session, "--tokens", 10)) == 0
    assert session.read_bytes() == before


def test_another_text_is_read_after_the_first(senri, model_folder, text, session, tmp_path, tokenizer):
    second = tmp_path / "second.txt"
    second.write_text("A second text that is short.")
    assert senri(*arguments(model_folder, text, session, "--tokens", 100)) == 0
    assert senri(*arguments(model_folder, second, session)) == 0
    live = Session.load(session, SenriForCausalLM.from_pretrained(model_folder))
    assert live.tokens_read == 100 + len(tokens_of(second, tokenizer))
    assert live.source.name == "second.txt"


def test_a_memory_without_window_can_be_read_on(senri, read_session, model_folder, text, tmp_path):
    merged = tmp_path / "merged.senri"
    assert senri("memory", "merge", read_session, read_session, "--out", merged) == 0
    assert senri(*arguments(model_folder, text, merged, "--tokens", 60)) == 0
    assert Session.load(merged, SenriForCausalLM.from_pretrained(model_folder)).tokens_read == 60


def test_ctrl_c_finishes_the_chunk_keeps_it_and_the_same_command_goes_on(
    senri, model_folder, text, session, tmp_path, monkeypatch, capsys
):
    words = arguments(model_folder, text, session, "--tokens", 400)
    original, before = Session.read, signal.getsignal(signal.SIGINT)

    def read_and_interrupt(self, input_ids):
        if self.tokens_read == 100:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, input_ids)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "read", read_and_interrupt)
        assert senri(*words) == 130
    said = capsys.readouterr().err
    assert "150 tokens read" in said
    assert "the same command goes on" in said
    assert MemoryState.load(session).header.tokens_read == 150
    assert signal.getsignal(signal.SIGINT) is before
    assert senri(*words) == 0
    whole = tmp_path / "whole.senri"
    assert senri(*arguments(model_folder, text, whole, "--tokens", 400)) == 0
    assert torch.equal(logits_after(session, model_folder), logits_after(whole, model_folder))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_keeps_what_was_read(model_folder, text, session, number):
    text.write_text(text.read_text() * 400)
    words = arguments(model_folder, text, session, "save_every_seconds=0.01")
    process = subprocess.Popen([sys.executable, "-m", "senri.cli", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not session.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "kept in" in said
    assert "Traceback" not in said
    assert MemoryState.load(session).header.tokens_read % 50 == 0
    assert not list(session.parent.glob("*.tmp"))


def test_the_session_is_saved_now_and_then(senri, model_folder, text, session, monkeypatch):
    saved = []
    original = Session.save
    monkeypatch.setattr(Session, "save", lambda self, path: (saved.append(self.source.tokens), original(self, path)))
    assert senri(*arguments(model_folder, text, session, "--tokens", 200, "save_every_seconds=0.000001")) == 0
    assert saved == [50, 100, 150, 200, 200]


def test_a_full_disk_is_said_and_leaves_the_old_session(complaint, read_session, model_folder, text, monkeypatch):
    before = read_session.read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = complaint(*arguments(model_folder, text, read_session, "--tokens", 300))
    assert "No space left on device" in said
    assert read_session.read_bytes() == before
    assert not list(read_session.parent.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"a\0b", "is binary"), (b"caf\xe9", "is not UTF-8"), (None, "does not exist")],
)
def test_bad_texts_are_refused_before_anything_is_written(complaint, model_folder, text, session, content, words):
    text.unlink()
    if content is not None:
        text.write_bytes(content)
    assert words in complaint(*arguments(model_folder, text, session))
    assert not session.exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("chunk_size=0", "chunk_size is 0"),
        ("chunk_size=-5", "chunk_size is -5"),
        ("tokens=0", "tokens is 0"),
        ("chunk_sise=4", "'chunk_size'"),
        ("chunk_size=many", "chunk_size"),
        ("save_every_seconds=0.0", "save_every_seconds"),
        ("nonsense", "key=value"),
    ],
)
def test_wrong_settings_are_refused(complaint, model_folder, text, session, word, said):
    assert said in complaint(*arguments(model_folder, text, session, word))


@pytest.mark.parametrize("number", ["0", "-3", "some"])
def test_wrong_token_counts_are_refused(complaint, model_folder, text, session, number):
    assert "tokens is" in complaint(*arguments(model_folder, text, session, f"--tokens={number}"))


def test_sessions_of_another_model_are_refused_and_unchanged(complaint, read_session, other_model_folder, text):
    before = read_session.read_bytes()
    assert "another model" in complaint(*arguments(other_model_folder, text, read_session))
    assert read_session.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_damaged_sessions_are_refused_and_unchanged(complaint, read_session, model_folder, text, damage):
    content = bytearray(read_session.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-5] ^= 1
    else:
        content = bytearray(b"not a session at all")
    read_session.write_bytes(content)
    complaint(*arguments(model_folder, text, read_session))
    assert read_session.read_bytes() == content


def test_places_and_folders_that_do_not_exist_are_refused(complaint, model_folder, base_folder, text, tmp_path):
    assert "does not exist" in complaint(*arguments(model_folder, text, tmp_path / "no" / "book.senri"))
    assert "is a folder" in complaint(*arguments(model_folder, text, tmp_path))
    assert "senri convert" in complaint(*arguments(tmp_path / "nowhere", text, tmp_path / "a.senri"))
    assert "not a Senri model" in complaint(*arguments(base_folder, text, tmp_path / "a.senri"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "senri"}')
    assert "cannot be read" in complaint(*arguments(tmp_path / "broken", text, tmp_path / "a.senri"))


def test_a_place_that_cannot_be_written_is_refused_before_reading(complaint, model_folder, text, session, monkeypatch):
    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    monkeypatch.setattr(read_command, "open_model", lambda _: pytest.fail("read before the place was checked"))
    assert "Read-only file system" in complaint(*arguments(model_folder, text, session))


def test_texts_of_one_character_one_long_line_and_other_line_ends(senri, model_folder, session, tmp_path, capsys):
    one, line, dos, unix = (tmp_path / name for name in ("一.txt", "line.txt", "dos.txt", "unix.txt"))
    one.write_text("x")
    line.write_text("word " * 200_000)
    dos.write_bytes(b"The cat\r\nsat.\r\n")
    unix.write_bytes(b"The cat\nsat.\n")
    assert senri(*arguments(model_folder, one, session)) == 0
    assert "一.txt: 1 tokens read" in capsys.readouterr().out
    assert senri(*arguments(model_folder, line, session, "--tokens", 60)) == 0
    assert senri(*arguments(model_folder, dos, session)) == 0
    assert senri(*arguments(model_folder, unix, session)) == 0
    assert "unix.txt was read to its end before" in capsys.readouterr().out


def test_a_changed_text_of_the_same_name_is_read_from_its_start(senri, model_folder, text, session, capsys):
    assert senri(*arguments(model_folder, text, session, "--tokens", 100)) == 0
    text.write_text(text.read_text() + "One line more.")
    assert senri(*arguments(model_folder, text, session, "--tokens", 50)) == 0
    assert "50 tokens read" in capsys.readouterr().out
    assert MemoryState.load(session).header.tokens_read == 150


def test_ctrl_c_before_reading_changes_nothing(senri, model_folder, text, session, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(read_command, "open_model", interrupted)
    assert senri(*arguments(model_folder, text, session)) == 130
    assert "no file is half written" in capsys.readouterr().err
    assert not session.exists()


def test_default_text_is_the_python_reference(senri, model_folder, session, capsys):
    assert main(["read", "--model", str(model_folder), "--session", str(session), "--tokens", "30"]) == 0
    assert "python-reference: 30 tokens read" in capsys.readouterr().out


def test_tokens_read_are_those_of_the_stream(senri, model_folder, text, session, tokenizer):
    assert senri(*arguments(model_folder, text, session, "--tokens", 130)) == 0
    ids = torch.tensor([list(islice(tokens_of(text, tokenizer), 130))])
    live = Session(SenriForCausalLM.from_pretrained(model_folder))
    for chunk in ids.split(50, dim=1):
        live.read(chunk)
    assert torch.equal(logits_after(session, model_folder), live.logits(torch.tensor([[5, 6, 7]])))
