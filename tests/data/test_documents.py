import hashlib
import os
from pathlib import Path

import pytest

from senri.data import documents as documents_module
from senri.data import open_document
from senri.errors import SenriError


def text_of(document):
    return "".join(document.pieces())


def test_file_is_read_whole_with_equal_line_ends(tmp_path: Path):
    (tmp_path / "a.log").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    document = open_document(tmp_path / "a.log")
    assert text_of(document) == "one\ntwo\nthree\n"
    assert document.name == "a.log"
    assert document.sha256 == hashlib.sha256(b"one\ntwo\nthree\n").hexdigest()
    assert document.characters == 14


def test_folder_is_read_in_path_order_and_takes_only_text(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "sub" / "c.TXT").write_text("third")
    (tmp_path / "weights.bin").write_bytes(b"\0\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("hidden")
    assert text_of(open_document(tmp_path)) == "first\n\nsecond\n\nthird"


def test_default_is_the_python_reference():
    document = open_document()
    assert document.name == "python-reference"
    assert document.characters > 400_000
    assert document == open_document("python-reference")
    assert len(text_of(document)) == document.characters


def test_characters_that_straddle_pieces_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents_module, "_PIECE_BYTES", 3)
    (tmp_path / "a.txt").write_bytes("日本語\r\n€uro".encode())
    assert text_of(open_document(tmp_path / "a.txt")) == "日本語\n€uro"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b" \n\t\n", ["empty"]),
        (b"text\0text", ["binary", "0x00", "byte 4"]),
        (b"\x7fELF\x02\x01", ["binary", "0x02", "byte 4"]),
        (b"caf\xe9 au lait", ["not UTF-8", "byte 3"]),
        (b"cut short \xe2\x82", ["not UTF-8", "byte 10"]),
        ("UTF-16".encode("utf-16"), ["binary", "byte 3"]),
    ],
)
def test_bad_content_is_refused_by_name_and_byte(tmp_path: Path, content: bytes, words: list[str]):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(SenriError) as caught:
        open_document(path)
    assert all(word in str(caught.value) for word in ["bad.txt", *words])


@pytest.mark.parametrize("piece", [1, 2, 5, 8])
def test_byte_of_a_decoding_error_counts_from_the_start_of_the_file(tmp_path: Path, monkeypatch, piece: int):
    monkeypatch.setattr(documents_module, "_PIECE_BYTES", piece)
    path = tmp_path / "bad.txt"
    path.write_bytes(b"0123456\xe2\x82A")
    with pytest.raises(SenriError, match="byte 7"):
        open_document(path)


def test_missing_text_and_folder_without_text_are_refused(tmp_path: Path):
    with pytest.raises(SenriError, match="nowhere.txt.*does not exist"):
        open_document(tmp_path / "nowhere.txt")
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(SenriError, match="holds no text.*\\.txt"):
        open_document(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(tmp_path: Path):
    path = tmp_path / "locked.txt"
    path.write_text("secret")
    path.chmod(0)
    with pytest.raises(SenriError, match="locked.txt.*cannot be read"):
        open_document(path)
