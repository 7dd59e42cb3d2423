import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from senri.errors import SenriError
from senri.evaluation import Subject, default_settings, run_units
from senri.evaluation.needle import Needle, hide, make_sample, needle_outcome, needle_units, open_haystack
from senri.evaluation.needle.units import LEFT_OUT, MEMORY, NO_MEMORY, OTHER_SAMPLE


@pytest.fixture(scope="session")
def small():
    changes = {
        "lengths": [400, 700],
        "depths": [0.0, 0.5, 1.0],
        "samples": 2,
        "chunk_size": 64,
        "window_only_tokens": 50,
    }
    return dataclasses.replace(default_settings().needle, **changes)


def text_of(haystack, tokens):
    return haystack.decode(list(tokens))


def run(subject, chosen):
    done = run_units(needle_units(subject, chosen), "needle", progress=False)
    return done.results, needle_outcome(subject, chosen, done.results)


class Reading:
    """A reader that has everything in view, and a model that answers by looking the needle up."""

    def __init__(self, model, text=()):
        self.model, self.text = model, list(text)
        model.readers.append(self)

    @property
    def tokens_read(self):
        return len(self.text)

    def read(self, ids):
        self.text += ids[0].tolist()
        self.model.reads += ids.shape[1]

    def fork(self):
        return Reading(self.model, self.text)

    def _answer(self, prompt):
        text, question = bytes_of(self.text), bytes_of(prompt)
        keys = re.findall(r"for (.+?) mentioned", question)[0].replace(" and ", ", ").split(", ")
        found = [value for key in keys for value in re.findall(rf"for {key} is: (.+?)\.", text)]
        return " " + ", ".join(found) if found else " nothing"

    def logits(self, ids, logits_to_keep):
        row = ids[0].tolist()
        split = len(row) - logits_to_keep + 1
        answer = ids_of(self._answer(row[:split])) + [0] * logits_to_keep
        return torch.nn.functional.one_hot(torch.tensor([answer[:logits_to_keep]]), 257).float()

    def generate(self, ids, max_new_tokens, do_sample):
        return torch.tensor([ids_of(self._answer(ids[0].tolist()))[:max_new_tokens]])


TOKENIZER = None


def bytes_of(ids):
    return TOKENIZER.decode(ids)


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@dataclasses.dataclass(frozen=True)
class PerfectSubject(Subject):
    def reader(self):
        return Reading(self.model)


@pytest.fixture
def perfect(bytes_tokenizer):
    global TOKENIZER
    TOKENIZER = bytes_tokenizer
    return PerfectSubject(SimpleNamespace(readers=[], reads=0), bytes_tokenizer, "perfect")


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(150, 900),
    depths=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    start=st.integers(0, 200),
)
def test_a_text_has_exactly_its_length_and_every_needle_whole(small, bytes_tokenizer, length, depths, start):
    haystack = open_haystack(small, bytes_tokenizer)
    needles = [Needle(f"Number {index} is here.", depth) for index, depth in enumerate(depths)]
    tokens = list(hide(haystack, "x", needles, length))
    assert len(tokens) == length
    text = text_of(haystack, tokens)
    for needle in needles:
        assert text.count(needle.sentence) == 1
    assert list(hide(haystack, "x", needles, length, start)) == tokens[start:]


def test_a_needle_lies_after_a_sentence_at_its_depth(small, bytes_tokenizer):
    haystack = open_haystack(small, bytes_tokenizer)
    for depth in (0.0, 0.3, 0.9, 1.0):
        text = text_of(haystack, hide(haystack, "x", [Needle("Here it is.", depth)], 2000))
        place = text.index(" Here it is.")
        assert place == 0 or text[place - 1] in ".!?" or depth == 1.0
        # At its depth or one sentence of noise later.
        assert depth * 1988 - 1 <= place <= depth * 1988 + 30


def test_a_book_is_read_from_a_place_of_the_samples_own(small, bytes_tokenizer, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Sentence {number} of the book. " for number in range(300)))
    haystack = open_haystack(dataclasses.replace(small, haystack=str(path)), bytes_tokenizer)
    first, again, other = (text_of(haystack, hide(haystack, name, [], 500)) for name in ("a", "a", "b"))
    assert first == again
    assert first != other
    assert "Sentence" in first
    # A text that ends goes round.
    assert len(list(hide(haystack, "a", [], 30_000))) == 30_000


def test_samples_are_decided_by_their_seed(small):
    one = make_sample(small, "single", 400, 0)
    assert one == make_sample(small, "single", 400, 0)
    others = [
        make_sample(small, "single", 400, 1),
        make_sample(small, "single", 700, 0),
        make_sample(dataclasses.replace(small, seed=1), "single", 400, 0),
    ]
    answers = [question.answers for sample in (one, *others) for question in (*sample.questions, *sample.left_out)]
    assert len({*answers}) == len(answers)


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ("numbers", r"\d{7}"),
        ("words", r"[a-z]+-[a-z]+"),
        ("uuids", r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
        ("codes", r"KEY-[A-Z]{3}\d{5}"),
    ],
)
def test_values_look_as_they_should(small, values, pattern):
    sample = make_sample(dataclasses.replace(small, values=values), "single", 400, 0)
    for question in sample.questions:
        assert re.fullmatch(pattern, question.answers[0])
        assert question.answers[0] in question.needles[0].sentence
        assert question.answers[0] not in question.text


def test_kinds_have_their_needles(small):
    key = make_sample(small, "multi_key", 400, 0)
    assert len(key.distractors) == small.distractors
    value = make_sample(small, "multi_value", 400, 0).questions[1]
    assert len(value.answers) == len(value.needles) == small.values_per_key
    assert value.needles[0].depth == 0.5
    query = make_sample(small, "multi_query", 400, 0).questions[0]
    assert len(query.answers) == small.keys_per_question
    for needle, answer in zip(query.needles, query.answers, strict=True):
        assert answer in needle.sentence


@pytest.mark.parametrize("kind", ["single", "multi_key", "multi_value", "multi_query"])
@pytest.mark.parametrize("reading", ["shared", "separate"])
def test_a_perfect_memory_finds_all_and_the_controls_none(perfect, small, kind, reading):
    chosen = dataclasses.replace(small, kinds=[kind], reading=reading, lengths=[2500], depths=[0.0, 0.4, 1.0])
    results, outcome = run(perfect, chosen)
    by_condition = {}
    for text in results:
        for answer in text["answers"]:
            by_condition.setdefault(answer["condition"], []).append(answer["exact"])
    assert all(by_condition[MEMORY])
    assert not any(by_condition[LEFT_OUT])
    assert not any(by_condition[OTHER_SAMPLE])
    # The last tokens alone hold the needle that lies at the end.
    assert sum(by_condition[NO_MEMORY]) < len(by_condition[NO_MEMORY])
    assert {len(answers) for answers in by_condition.values()} == {6}
    assert outcome.headline.startswith("exact match 100%")


def test_a_grid_column_costs_one_reading(perfect, small):
    chosen = dataclasses.replace(small, lengths=[1500], depths=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0], samples=1)
    results, outcome = run(perfect, chosen)
    assert results[0]["reads"] == {MEMORY: 1}
    assert results[0]["tokens_read"] == 1500
    assert outcome.counts["reads_of_one_text"] == {MEMORY: 1}
    assert outcome.counts["questions"] == 6


def test_separate_texts_share_what_comes_before_the_needle(perfect, small):
    chosen = dataclasses.replace(small, reading="separate", lengths=[2000], samples=1, depths=[0.0, 0.5, 1.0])
    results, _ = run(perfect, chosen)
    # The trunk once, and each text from its needle on: 1 + 1 + 0.5 + 0 readings, but for the needles' own lengths.
    assert results[0]["tokens_read"] == pytest.approx(2.5 * 2000, rel=0.05)


def test_half_an_answer_is_counted_as_half(perfect, small, monkeypatch):
    answer = Reading._answer
    monkeypatch.setattr(Reading, "_answer", lambda self, prompt: answer(self, prompt)[:18])
    chosen = dataclasses.replace(small, kinds=["multi_value"], lengths=[2500], samples=1)
    results, _ = run(perfect, chosen)
    found = [one for one in results[0]["answers"] if one["condition"] == MEMORY]
    assert all(one["found"] == 0.5 and not one["exact"] and 0 < one["tokens_right"] < 1 for one in found)


def test_a_senri_model_is_read_with_memory_and_without(senri_subject, small):
    results, outcome = run(senri_subject, small)
    assert outcome.counts["reads"] == {MEMORY: 4, NO_MEMORY: 4}
    assert outcome.counts["tokens_read"] == 2 * 2 * (400 + 700)
    titles = [column for table in outcome.tables for column in table.columns]
    assert {MEMORY, NO_MEMORY, LEFT_OUT, OTHER_SAMPLE} <= {*titles}
    again, _ = run(senri_subject, small)
    for text in (*results, *again):
        text.pop("process_bytes")
    assert again == results


def test_asking_leaves_the_session_as_it_is(senri_subject, base_subject, small):
    """One answer more or less before it changes nothing about an answer."""
    for subject in (senri_subject, base_subject):
        few = dataclasses.replace(small, lengths=[400], depths=[0.5, 1.0], samples=1)
        both, _ = run(subject, few)
        units = needle_units(subject, few)
        assert run_units(units, "again", progress=False).results[0]["answers"] == both[0]["answers"]


@pytest.mark.parametrize("stop_at", [5, 15])
def test_an_interrupted_reading_goes_on_in_the_middle_of_a_text(stop_at, senri_subject, small, tmp_path, monkeypatch):
    chosen = dataclasses.replace(small, lengths=[700], samples=1)
    wanted, _ = run(senri_subject, chosen)
    from senri.evaluation.needle import units

    read, chunks = units._Text._read, []

    def interrupted(self, *words):
        if len(chunks) == stop_at:
            raise KeyboardInterrupt
        counted(self, *words)

    def counted(self, *words):
        chunks.append(1)
        read(self, *words)

    monkeypatch.setattr(units._Text, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_units(needle_units(senri_subject, chosen), "n", tmp_path, "me", save_every_seconds=0.0, progress=False)
    monkeypatch.setattr(units._Text, "_read", counted)
    done = run_units(needle_units(senri_subject, chosen), "n", tmp_path, "me", progress=False)
    assert len(chunks) == 22  # 11 with memory and 11 without, none of them twice
    assert done.results[0]["answers"] == wanted[0]["answers"]
    assert done.results[0]["reads"] == wanted[0]["reads"]
    assert done.results[0]["tokens_read"] == wanted[0]["tokens_read"]
    assert not list(tmp_path.glob("unfinished-*"))


def test_the_training_format(perfect, small, bytes_tokenizer):
    chosen = dataclasses.replace(small, format="training", values="codes", reading="separate", lengths=[600], samples=1)
    sample = make_sample(chosen, "single", 600, 0)
    assert re.fullmatch(r"The secret key is: KEY-[A-Z]{3}\d{5}\.", sample.questions[0].needles[0].sentence)
    assert sample.questions[0].text.strip() == "Question: What is the secret key mentioned above?\nAnswer:"


def test_wrong_settings_are_refused(small, bytes_tokenizer, base_subject):
    with pytest.raises(SenriError, match="reading=separate"):
        dataclasses.replace(small, format="training")
    with pytest.raises(SenriError, match="depths has 1.5"):
        dataclasses.replace(small, depths=[1.5])
    with pytest.raises(SenriError, match="names something twice"):
        dataclasses.replace(small, lengths=[400, 400])
    with pytest.raises(SenriError, match="format is 'named2'"):
        dataclasses.replace(small, format="named2")
    with pytest.raises(SenriError, match="too short for its needles"):
        needle_units(base_subject, dataclasses.replace(small, lengths=[100]))
