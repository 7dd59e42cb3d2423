import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from senri.data import open_document
from senri.data.babi import BABI_TASKS, BabiQuestion
from senri.errors import SenriError
from senri.evaluation.babilong import BabilongSettings, babilong_outcome, babilong_units
from senri.evaluation.babilong_prompts import TASK_PROMPTS, is_correct
from senri.evaluation.babilong_text import book_tokens, fact_tokens, facts_alone, mix, sentences
from senri.evaluation.subject import Subject
from senri.evaluation.units import run_units
from senri.models import SenriConfig, SenriForCausalLM

BOOK = "".join(
    f"The {index}th keeper of the lighthouse, Mr. Oak, wrote\nthat day {index} was calm. He slept.\n"
    + ("\n" if index % 3 == 0 else "")
    for index in range(200)
)
FACTS = ("Ada walked to the garden.", "Ben ran to the office.", "Ada ran to the kitchen.")
QUESTION = BabiQuestion(FACTS, "Where is Ada?", "kitchen")
STORIES = "".join(
    f"1 Ada walked to the {first}.\n2 Ben ran to the {second}.\n3 Where is Ada?\t{first}\t1\n"
    for first, second in (("garden", "office"), ("kitchen", "hallway"), ("office", "garden"), ("bedroom", "office"))
)


class Bytes:
    """A tokenizer whose tokens are the bytes of a text."""

    def __call__(self, text, *, add_special_tokens, verbose=True):
        return {"input_ids": list(text.encode())}

    def decode(self, ids, **_):
        return bytes(ids).decode(errors="replace")


class Oracle:
    """A reader that answers as a rule says which sees all that was read."""

    def __init__(self, rule, log):
        self.rule, self.log, self.ids = rule, log, []
        log.append(self)
        self.chunks = []

    @property
    def tokens_read(self):
        return len(self.ids)

    def read(self, ids):
        self.chunks.append(ids.shape[1])
        self.ids += ids[0].tolist()

    def generate(self, ids, max_new_tokens, do_sample):
        assert not do_sample
        self.read(ids)
        self.text = bytes(self.ids).decode()
        return torch.tensor([list(self.rule(self.text).encode()[:max_new_tokens])])


def oracle_subject(rule, log, *, is_senri=True, context=10**6):
    return SimpleNamespace(
        tokenizer=Bytes(), name="oracle", is_senri=is_senri, context=context, reader=lambda: Oracle(rule, log)
    )


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "book.txt").write_text(BOOK)
    (tmp_path / "qa1_single-supporting-fact_test.txt").write_text(STORIES)
    values = {
        "tasks": ["qa1"],
        "lengths": [400, 900],
        "samples": 3,
        "babi": str(tmp_path),
        "text": str(tmp_path / "book.txt"),
        "instruction": "after",
        "max_new_tokens": 12,
        "chunk_size": 64,
        "seed": 0,
    }
    return lambda **changes: BabilongSettings(**{**values, **changes})


def run(subject, settings):
    results = run_units(babilong_units(subject, settings), "babilong", progress=False).results
    return results, babilong_outcome(subject, settings, results)


def last_move(text):
    """Answer from the plain statements about Ada, and guess where there are none."""
    moves = [place for place in TASK_PROMPTS["qa1"].labels if f"Ada walked to the {place}." in text]
    return f" {moves[0]}." if moves else " hallway."


@pytest.mark.parametrize("seed", range(20))
def test_a_text_has_exactly_the_length_and_its_facts_once_in_order_at_sentence_borders(tmp_path, seed):
    (tmp_path / "book.txt").write_text(BOOK)
    book = open_document(tmp_path / "book.txt")
    haystack = mix(QUESTION, book, 700, Bytes(), random.Random(seed))
    text, control = bytes(haystack.text).decode(), bytes(haystack.control).decode()
    assert len(haystack.text) == len(haystack.control) == 700
    places = [text.index(f" {fact}") for fact in FACTS]
    assert places == sorted(places)
    assert all(text.count(fact) == 1 and fact not in control for fact in FACTS)
    assert all(place == 0 or text[place - 1] == "." for place in places)
    for fact in FACTS:
        text = text.replace(f" {fact}", "")
    assert control.startswith(text)  # what stands between the facts is the book, from the same place on


def test_facts_and_passages_move_with_the_seed(tmp_path):
    (tmp_path / "book.txt").write_text(BOOK)
    book = open_document(tmp_path / "book.txt")
    made = [mix(QUESTION, book, 700, Bytes(), random.Random(seed)) for seed in (0, 1, 0)]
    assert made[0] == made[2]
    assert made[0].control != made[1].control
    texts = [bytes(mix(QUESTION, book, 2000, Bytes(), random.Random(seed)).text) for seed in range(30)]
    assert min(text.index(FACTS[0].encode()) for text in texts) < 300
    assert max(text.index(FACTS[2].encode()) for text in texts) > 1700


def test_a_text_that_just_holds_the_facts_and_one_too_short(tmp_path):
    (tmp_path / "book.txt").write_text(BOOK)
    book = open_document(tmp_path / "book.txt")
    alone = facts_alone(QUESTION, Bytes())
    assert bytes(alone.text).decode() == "".join(f" {fact}" for fact in FACTS)
    assert alone.control == []
    assert mix(QUESTION, book, len(alone.text), Bytes(), random.Random(0)).text == alone.text
    with pytest.raises(SenriError, match="longer than the"):
        mix(QUESTION, book, len(alone.text) - 1, Bytes(), random.Random(0))


def test_a_book_is_read_round_once_and_no_further(tmp_path):
    (tmp_path / "book.txt").write_text("One is here. Two is there. Three is gone.")
    book = open_document(tmp_path / "book.txt")
    assert bytes(sum(book_tokens(book, 30, Bytes(), start=5), [])).decode() == " Two is there. Three is gone. "
    assert (
        bytes(sum(book_tokens(book, 42, Bytes(), start=15), [])).decode()
        == (" Three is gone. One is here. Two is there."[:42])
    )
    with pytest.raises(SenriError, match="fewer than 60 tokens"):
        book_tokens(book, 60, Bytes(), start=0)


def test_sentences_end_at_stops_before_capitals_and_at_empty_lines_and_nowhere_else():
    text = 'CHAPTER I\n\nMr. Oak met J. Elm at\nthe gate. "Well?" he asked. No one spoke!\n'
    text += "They left... slowly.\n\n\nThe end"
    wanted = [
        " CHAPTER I",
        "\n\nMr. Oak met J. Elm at the gate.",
        ' "Well?" he asked.',
        " No one spoke!",
        " They left... slowly.",
        "\n\nThe end",
    ]
    assert list(sentences([text])) == wanted
    assert list(sentences(text)) == wanted  # one character at a time


def test_the_right_label_and_no_other_counts():
    labels = TASK_PROMPTS["qa1"].labels
    assert is_correct(QUESTION, " The Kitchen. Or the garden.", labels)
    assert is_correct(QUESTION, "\nkitchen\ngarden", labels)
    assert not is_correct(QUESTION, "kitchen or garden", labels)
    assert not is_correct(QUESTION, "attic", labels)
    assert not is_correct(QUESTION, "", labels)
    given = BabiQuestion(("Mary gave the milk to Jeff.",), "Who did Mary give the milk to?", "Jeff")
    assert is_correct(given, "Mary gave the milk to Jeff", TASK_PROMPTS["qa5"].labels)
    assert not is_correct(given, "Mary gave the milk to Jeff and Bill", TASK_PROMPTS["qa5"].labels)


@pytest.mark.parametrize("task", BABI_TASKS)
def test_copying_from_an_example_is_never_right(task):
    prompt = TASK_PROMPTS[task]
    shown = [word for one in prompt.examples for word in (*one.facts, one.question, one.answer)]
    assert not any(label.lower() in text.lower() for label in prompt.labels for text in shown)


@pytest.mark.parametrize("instruction", ["after", "before"])
def test_a_model_that_reads_the_facts_answers_and_without_them_guesses(settings, instruction):
    chosen, log = settings(instruction=instruction), []
    results, outcome = run(oracle_subject(last_move, log), chosen)
    assert [result["length"] for result in results] == [0] * 3 + [400] * 3 + [900] * 3
    assert outcome.results["accuracy"]["qa1"] == {"0": 1.0, "400": 1.0, "900": 1.0}
    assert outcome.results["facts_left_out"]["qa1"] == {"0": 0.0, "400": 0.0, "900": 0.0}
    assert outcome.counts == {
        "samples": 9,
        "reads": 18,
        "tokens": sum(reader.tokens_read for reader in log),
    }
    assert not outcome.warnings
    assert outcome.headline == "100% at 900 (facts left out 0%)"
    assert outcome.tables[0].rows[0][1:] == ["100% (3/3)"] * 3
    # The same questions at every length; whatever else there is, the question comes last.
    asked = [result["expected"] for result in results]
    assert asked[:3] == asked[3:6] == asked[6:]
    head, tail = TASK_PROMPTS["qa1"].around("Where is Ada?", instruction)
    for reader in log:
        assert max(reader.chunks) <= chosen.chunk_size
        assert reader.text.startswith(head)
        assert reader.text.endswith(tail)
        assert reader.text.count(TASK_PROMPTS["qa1"].instruction) == 1
    lengths = sorted(reader.tokens_read - len(head) - len(tail) for reader in log)
    assert lengths[:3] == [0, 0, 0]
    assert lengths[6:] == [400] * 6 + [900] * 6


def test_progress_adds_up_to_the_size(settings):
    for unit in babilong_units(oracle_subject(last_move, []), settings()):
        done = []
        unit.run(SimpleNamespace(advance=done.append))
        assert sum(done) == unit.size


def test_a_model_that_always_says_the_same_is_not_believed(settings):
    _, outcome = run(oracle_subject(lambda _: "garden", [], is_senri=False, context=500), settings(samples=4))
    assert outcome.results["accuracy"]["qa1"]["0"] == outcome.results["facts_left_out"]["qa1"]["0"] == 0.25
    assert any("QA1" in warning and "nothing about its memory" in warning for warning in outcome.warnings)
    assert any("more than 500 tokens" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("kind", ["senri", "llama"])
def test_real_models_of_both_kinds_are_read(settings, kind):
    sizes = {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    if kind == "senri":
        memory = {"memory_layers": [1], "memory": {"segment_length": 8}}
        config = SenriConfig(sliding_window=16, default_layer_type="sliding_attention", **memory, **sizes)
        model = SenriForCausalLM(config).eval()
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    results, outcome = run(Subject(model, Bytes(), kind), settings(lengths=[300], samples=1))
    assert len(results) == 2
    assert outcome.counts["tokens"] > 2 * 300
    assert [picture.name for picture in outcome.pictures] == ["babilong"]
    again, _ = run(Subject(model, Bytes(), kind), settings(lengths=[300], samples=1, chunk_size=10))
    assert [one["output"] for one in again] == [one["output"] for one in results]


def test_bad_input_is_said_before_any_reading(settings, tmp_path):
    subject = oracle_subject(last_move, [])
    with pytest.raises(SenriError, match="only 4 questions whose facts fit into 400"):
        babilong_units(subject, settings(samples=5))
    with pytest.raises(SenriError, match="only 0 questions whose facts fit into 20"):
        babilong_units(subject, settings(lengths=[20]))
    with pytest.raises(SenriError, match="fewer than 100000 tokens"):
        babilong_units(subject, settings(lengths=[100_000]))
    Path(tmp_path, "qa1_single-supporting-fact_test.txt").write_text("1 Ada hid.\n2 Where is Ada?\tJardin\t1\n")
    with pytest.raises(SenriError, match="the answer 'Jardin'"):
        babilong_units(subject, settings())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["qa9"]}, "tasks names 'qa9'"),
        ({"tasks": []}, "tasks is"),
        ({"lengths": [5, 5]}, "none twice"),
        ({"lengths": [-1]}, "lengths has -1"),
        ({"samples": 0}, "samples is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, changes, said):
    with pytest.raises(SenriError, match=said):
        settings(**changes)


def test_facts_have_a_blank_before_them():
    assert [bytes(fact).decode() for fact in fact_tokens(QUESTION, Bytes())] == [f" {fact}" for fact in FACTS]
