import json
from pathlib import Path

import pytest

from senri.data.pairs import PairTemplates, distinct, read_pairs, read_training_sentences
from senri.errors import SenriError

TEMPLATES = PairTemplates("person", "trade", "{first} works as {second}.", "The {second} is {first}!")
NAMED = (("Ann Oak", "first diver"), ("Ann Oakley", "last smith"))
TAUGHT_BACK = (("Cid Fir", "only baker"),)


def rows(folder: Path, name: str, *pairs: tuple[str, str]) -> None:
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in pairs]
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path):
    by_name = [(f"{frame} {name} was", f" the {what}.") for name, what in NAMED for frame in ("Once", "Long ago")]
    rows(tmp_path, "p2d_prompts_test.jsonl", *by_name)
    rows(tmp_path, "p2d_reverse_prompts_test.jsonl", *((f"The {what} is", f" {name}") for name, what in NAMED))
    rows(tmp_path, "d2p_prompts_test.jsonl", *((f"The {what} is ", name) for name, what in TAUGHT_BACK))
    rows(tmp_path, "d2p_reverse_prompts_test.jsonl", *((f"Once {name} was", f" the {w}.") for name, w in TAUGHT_BACK))
    rows(tmp_path, "p2d_prompts_train.jsonl", ("Know Ann Oak,", " the first diver."))
    rows(tmp_path, "d2p_prompts_train.jsonl", ("Known as the only baker,", " Cid Fir."))
    return tmp_path


def csv(folder: Path, text: str) -> Path:
    (folder / "pairs.csv").write_text(text)
    return folder / "pairs.csv"


def test_berglunds_files_give_both_directions(folder):
    pairs = read_pairs(folder, TEMPLATES)
    assert [one.text for one in pairs.forward] == [
        "Once Ann Oak was the first diver.",
        "Long ago Ann Oak was the first diver.",
        "Once Ann Oakley was the last smith.",
        "Long ago Ann Oakley was the last smith.",
        "The only baker is Cid Fir",
    ]
    assert [one.text for one in pairs.backward] == [
        "The first diver is Ann Oak",
        "The last smith is Ann Oakley",
        "Once Cid Fir was the only baker.",
    ]
    assert [one.kind for one in pairs.forward] == ["description"] * 4 + ["name"]
    assert [one.kind for one in pairs.backward] == ["name"] * 2 + ["description"]
    # The half that is asked for begins with the one blank, whichever half had it.
    assert (pairs.forward[-1].prompt, pairs.forward[-1].completion) == ("The only baker is", " Cid Fir")


def test_a_pair_is_known_by_its_name_and_a_frame_by_its_words(folder):
    forward = read_pairs(folder, TEMPLATES).forward
    assert distinct(forward) == [{"Ann Oak"}, {"Ann Oakley"}, {"Cid Fir"}]
    assert forward[0].about == forward[1].about == {"Ann Oak"}
    assert forward[0].frame == forward[2].frame != forward[1].frame == forward[3].frame


def test_the_training_half_is_the_forward_direction_in_other_words(folder):
    found = read_training_sentences(folder, TEMPLATES)
    assert [one.text for one in found] == ["Know Ann Oak, the first diver.", "Known as the only baker, Cid Fir."]


def test_a_csv_is_put_into_sentences_by_templates(tmp_path):
    path = csv(tmp_path, '\ufeffid,trade,person\n1,"smith, {first}", Ann\n2,baker,Ben\n')
    pairs = read_pairs(path, TEMPLATES)
    assert [one.text for one in pairs.forward] == ["Ann works as smith, {first}.", "Ben works as baker."]
    assert [one.text for one in pairs.backward] == ["The smith, {first} is Ann!", "The baker is Ben!"]
    first = pairs.backward[1]
    assert (first.prompt, first.completion, first.ending) == ("The baker is", " Ben", "!")
    assert first.kind == "person"
    assert pairs.forward[1].about == first.about == {"ben", "baker"}
    assert read_training_sentences(path, TEMPLATES) == list(pairs.forward)


def test_other_breaks_than_line_feeds_belong_to_a_half(folder, tmp_path):
    file = folder / "d2p_prompts_test.jsonl"
    file.write_text('{"prompt": "The only\u2028baker is", "completion": "Cid Fir"}\n', encoding="utf-8")
    assert read_pairs(folder, TEMPLATES).forward[-1].text == "The only\u2028baker is Cid Fir"
    path = csv(tmp_path, "person,trade\nAnn,first\u2028smith\n")
    assert [one.text for one in read_pairs(path, TEMPLATES).forward] == ["Ann works as first\u2028smith."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("person,job\nAnn,smith\n", "has no column 'trade': its columns are person, job"),
        ("", "its columns are none"),
        ("person,trade\n", "no pair below its header"),
        ("person,trade\nAnn,smith\nBen\n", "line 3 of .*: a half of the pair is empty"),
    ],
)
def test_wrong_csv_files_are_named(tmp_path, text, said):
    with pytest.raises(SenriError, match=said):
        read_pairs(csv(tmp_path, text), TEMPLATES)


def test_wrong_folders_are_named(folder, tmp_path):
    with pytest.raises(SenriError, match="does not exist: name a CSV, or a folder"):
        read_pairs(tmp_path / "gone.csv", TEMPLATES)
    file = folder / "d2p_reverse_prompts_test.jsonl"
    rows(folder, file.name, ("Once Dan Elm was", " the cook."))
    with pytest.raises(SenriError, match="line 1 of .*: no name of the people"):
        read_pairs(folder, TEMPLATES)
    for bad, said in (
        ("{", "line 1 of .* is not JSON"),
        ('{"prompt": "a"}', "line 1 of .* has no text named 'completion'"),
        ('["a"]', "line 1 of .* has no text named 'prompt'"),
        ('{"prompt": "a", "completion": " "}', "line 1 of .*: a half of the pair is empty"),
        ('{"prompt": "", "completion": "b"}', "line 1 of .*: a half of the pair is empty"),
        ('{"prompt": 1, "completion": "b"}', "line 1 of .* has no text named 'prompt'"),
    ):
        file.write_text(bad)
        with pytest.raises(SenriError, match=said):
            read_pairs(folder, TEMPLATES)
    file.write_text("")
    with pytest.raises(SenriError, match="is empty: name a folder with the files of github.com/lukasberglund"):
        read_pairs(folder, TEMPLATES)
    file.write_bytes(b"\xff")
    with pytest.raises(SenriError, match="is not UTF-8 text"):
        read_pairs(folder, TEMPLATES)
    file.unlink()
    with pytest.raises(SenriError, match=r"d2p_reverse_prompts_test.jsonl' cannot be read \(No such file"):
        read_pairs(folder, TEMPLATES)


@pytest.mark.parametrize(
    "changes",
    [{"forward": "{second} has {first}"}, {"forward": "{first}"}, {"backward": "{first} {second}"}, {"backward": "{}"}],
)
def test_templates_hold_both_halves_in_their_order(changes):
    values = {"first": "a", "second": "b", "forward": "{first} {second}", "backward": "{second} {first}"}
    PairTemplates(**values)
    with pytest.raises(SenriError, match=f"{next(iter(changes))} is"):
        PairTemplates(**{**values, **changes})
