import sys
from types import SimpleNamespace

import pytest

from senri.data.rows import hub_rows, numbered_rows, read_rows
from senri.errors import SenriError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def test_every_line_is_a_row(path):
    path.write_text('{"text": "a", "id": 1}\n\n{"text": "b"}', encoding="utf-8")
    assert read_rows(path, ("text",)) == [{"text": "a", "id": 1}, {"text": "b"}]
    assert numbered_rows(path, ("text",)) == [(1, {"text": "a", "id": 1}), (3, {"text": "b"})]


def test_only_a_line_feed_ends_a_line(path):
    path.write_bytes('{"text": "a\u2028b\x85c"}\r\n{"text":\r"d"}\n'.encode())
    assert numbered_rows(path, ("text",)) == [(1, {"text": "a\u2028b\x85c"}), (2, {"text": "d"})]


def test_a_byte_order_mark_is_no_part_of_the_first_row(path):
    path.write_text('\ufeff{"text": "a"}\n', encoding="utf-8")
    assert read_rows(path, ("text",)) == [{"text": "a"}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{', "line 2 of .* is not JSON"),
        (b'{"text": "a"}\n\n{"text": 1}', "line 3 of .* has no text named 'text'"),
        (b'["text"]', "line 1 of .* has no text named 'text'"),
        (b"\xff", "is not UTF-8 text: name a .jsonl file"),
        (b" \n", "is empty: name a .jsonl file"),
    ],
)
def test_wrong_files_are_named(path, content, said):
    path.write_bytes(content)
    with pytest.raises(SenriError, match=said):
        read_rows(path, ("text",))


def test_a_missing_file_is_named_and_what_is_wanted_in_its_place(path):
    with pytest.raises(SenriError, match=r"rows.jsonl' cannot be read \(No such file or directory\): name a .jsonl"):
        read_rows(path, ("text",))
    with pytest.raises(SenriError, match="name a folder of songs."):
        numbered_rows(path, ("text",), wanted="a folder of songs")


def test_the_hub_is_asked_for_one_split(monkeypatch):
    def load_dataset(*names, split):
        return [{"text": f"{' '.join(names)} {split}"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert hub_rows("some/songs", "short", "test") == [{"text": "some/songs short test"}]


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route\nand much more")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(SenriError) as caught:
        hub_rows("some/songs", "short", "test")
    assert str(caught.value) == (
        "the data set some/songs cannot be had from the Hub (no route): name a local file with data=..."
    )


def test_a_missing_library_is_said_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SenriError, match=r"library datasets: pip install 'senri\[eval\]', or name a box of songs"):
        hub_rows("some/songs", "short", "test", local="a box of songs")
