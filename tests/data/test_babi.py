import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from senri.data.babi import HUB_DATASET, BabiQuestion, read_babi
from senri.errors import SenriError

STORIES = """\
1 Ada walked to the attic.
2 Ben is in the cellar.
3 Where is Ada? \tattic\t1
4 Ada ran to the porch.
5 Where is Ada? \tporch\t4
1 Cleo sat in the barn.
2 Where is Cleo?\tbarn\t1
"""


def write(folder: Path, text: str, name: str = "qa1_single-supporting-fact_test.txt") -> Path:
    (folder / name).write_text(text)
    return folder


def test_the_facts_of_a_question_are_the_statements_before_it_in_its_story(tmp_path):
    assert read_babi("qa1", write(tmp_path, STORIES)) == [
        BabiQuestion(("Ada walked to the attic.", "Ben is in the cellar."), "Where is Ada?", "attic"),
        BabiQuestion(
            ("Ada walked to the attic.", "Ben is in the cellar.", "Ada ran to the porch."), "Where is Ada?", "porch"
        ),
        BabiQuestion(("Cleo sat in the barn.",), "Where is Cleo?", "barn"),
    ]


def test_the_file_of_the_task_is_read_and_not_its_training_half_or_another_task(tmp_path):
    write(tmp_path, STORIES)
    write(tmp_path, "1 Dan hid.\n2 Who hid?\tDan\t1\n", "qa2_two-supporting-facts_test.txt")
    write(tmp_path, "nonsense", "qa2_two-supporting-facts_train.txt")
    write(tmp_path, "nonsense", "qa20_agents-motivations_test.txt")
    assert [question.answer for question in read_babi("qa2", tmp_path)] == ["Dan"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Ada walked.\n", "line 1: a line of bAbI is a number"),
        ("1 Ada walked.\n3 Ada ran.\n", "line 2 has the number 3 after 1"),
        ("1 Where is Ada?\tattic\t1\n", "a statement before it"),
        ("1 Ada walked.\n2 Where is Ada?\t\t1\n", "an answer"),
        ("1 Ada walked.\n", "holds no question"),
    ],
)
def test_lines_of_another_format_are_named(tmp_path, text, said):
    with pytest.raises(SenriError, match=said):
        read_babi("qa1", write(tmp_path, text))


def test_wrong_places_and_names_are_said(tmp_path):
    with pytest.raises(SenriError, match="does not exist"):
        read_babi("qa1", tmp_path / "gone")
    with pytest.raises(SenriError, match=r"holds 0 files named qa3_\*_test.txt"):
        read_babi("qa3", write(tmp_path, STORIES))
    with pytest.raises(SenriError, match="there is no task 'qa6'"):
        read_babi("qa6", tmp_path)
    (tmp_path / "qa1_single-supporting-fact_test.txt").write_bytes(b"1 \xff\xfe")
    with pytest.raises(SenriError, match="cannot be read as UTF-8"):
        read_babi("qa1", tmp_path)


def test_the_hub_is_asked_for_the_facts_alone(monkeypatch):
    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return [{"input": "Ada walked to the attic. Ben slept.", "question": "Where is Ada? ", "target": "attic"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = read_babi("qa4")
    assert found == [BabiQuestion(("Ada walked to the attic.", "Ben slept."), "Where is Ada?", "attic")]
    assert asked == [(HUB_DATASET, "0k", "qa4")]


def test_no_package_and_no_connection_are_said(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(SenriError, match=rf"{HUB_DATASET} cannot be had from the Hub .* files with babi=\.\.\."):
        read_babi("qa1")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SenriError, match=r"pip install 'senri\[eval\]', or name a folder of bAbI's files"):
        read_babi("qa1")
