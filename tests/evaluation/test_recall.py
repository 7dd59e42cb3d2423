"""Recall at length: one shared reading gives the memory of a full one, and the controls know nothing."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from senri.data import chunks
from senri.errors import SenriError
from senri.evaluation import Subject, default_settings, run_units
from senri.evaluation.recall import RecallTask, recall_outcome, recall_units
from senri.evaluation.recall.question import SharedQuestion
from senri.evaluation.recall.samples import make_recall_sample
from senri.evaluation.recall.shared import SharedReading
from senri.evaluation.recall.units import CONDITIONS, IN_WINDOW, MEMORY, OTHER_SAMPLE, WINDOW_ONLY
from senri.evaluation.units import Scratch
from senri.models import SenriConfig, SenriForCausalLM, Session

from .conftest import SIZES

WINDOW = 16
MEMORY_OF = {
    "combine": "add",
    "rule": "delta",
    "feature_map": "l2",
    "normaliser": "rmsnorm",
    "granularity": "token",
    "projections": "own",
    "num_heads": 2,
    "num_key_value_heads": 2,
    "key_dim": 12,
    "value_dim": 8,
    "token_shift": True,
    "short_convolution": 3,
    "learned_write_strength": True,
    "write_strength": 0.4,
}


def model_with(layers: int = 3, memory_layers: tuple[int, ...] = (2,), **memory: Any) -> SenriForCausalLM:
    torch.manual_seed(0)
    config = SenriConfig(
        **{**SIZES, "num_hidden_layers": layers},
        sliding_window=WINDOW,
        default_layer_type="sliding_attention",
        memory_layers=list(memory_layers),
        memory={**MEMORY_OF, **memory},
        eos_token_id=256,
    )
    model = SenriForCausalLM(config).eval()
    for layer in memory_layers:  # an added memory starts unheard
        if config.memory["combine"] == "add":
            torch.nn.init.normal_(model.model.layers[layer].self_attn.memory_o_proj.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def small() -> Any:
    return dataclasses.replace(
        default_settings().recall,
        lengths=[700],
        samples=5,
        places=4,
        behind=40,
        chunk_size=64,
        tasks=["single_noise", "two_keys"],
        described={
            "single_noise": RecallTask("noise", "numbers", 1),
            "two_keys": RecallTask("noise", "numbers", 2),
            "facts": RecallTask("noise", "facts", 1),
            "in_books": RecallTask("books", "words", 1),
        },
    )


@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"value_dim": 12},
        {"rule": "gated_delta", "decay": 0.9},
        {"rule": "linear"},
        {"token_shift": False},
        {"combine": "copy", "learned_read_strength": True},
        {"combine": "copy", "learned_read_strength": True, "look_ahead": 3, "write_delay": 9},
        {"type": "least_squares", "granularity": "segment", "segment_length": 7},
        {"rule": "linear", "granularity": "segment", "segment_length": 7},
        {"type": "multi", "rule": "delta"},
        {"write_budget": 30.0},
    ],
    ids=[
        *("plain", "square", "gated", "linear", "unshifted", "copying", "late"),
        *("together", "segments", "several", "budget"),
    ],
)
def test_the_memory_is_that_of_a_full_reading(memory: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("senri.evaluation.recall.shared._ROWS_TOGETHER", 2)
    # Two layers below the memory see 2 * 16 tokens back: with 40 tokens behind each place, nothing is left out.
    model = model_with(**memory)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 256, (300,), generator=generator).tolist()
    places = [0, 90, 200]
    hidden = [([7, 8, 9], 0), ([30] * 11, 2)]
    read: list[int] = []
    readings = [hidden, hidden[1:], [([1, 2], 1)], []]
    shared = SharedReading(model, tokens, places, 40, readings, 37, Scratch(None, math.inf, read.append))
    assert sum(read) == len(tokens)
    for chosen, found in zip(readings, shared.states, strict=True):
        text, last = list[int](), 0
        for ids, place in chosen:
            text += [*tokens[last : places[place]], *ids]
            last = places[place]
        session = Session(model)
        for chunk in chunks([*text, *tokens[last:]], 50):
            session.read(chunk)
        ((layer, expected),) = session.get_memory_state().layers.items()
        assert layer == shared.layer and found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{name} {chosen}")


def test_a_reading_is_written_for_itself_from_its_first_sentence_on(monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = list[tuple[int, list[int]]](), SharedReading._write

    def counted(self: SharedReading, inputs: torch.Tensor, given: Any, past: Any, rows: list[int]) -> Any:
        written.append((inputs.shape[1], rows))
        return write(self, inputs, given, past, rows)

    monkeypatch.setattr(SharedReading, "_write", counted)
    readings = [[([7, 8], 0)], [([30] * 3, 1)], []]
    read = Scratch(None, math.inf, lambda count: None)
    SharedReading(model_with(), [index % 250 for index in range(200)], [50, 120], 20, readings, 64, read)
    tokens = [sum(count for count, rows in written if row in rows) for row in range(4)]
    assert tokens == [2 + 150, 3 + 80, 0, 200]


@pytest.mark.parametrize("stop_at", [3, 7, 12])
def test_an_interrupted_reading_goes_on_where_it_was(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with(combine="copy", learned_read_strength=True, look_ahead=3, write_delay=9, write_budget=8.0)
    tokens = [index * 7 % 250 for index in range(300)]
    readings = [[([7, 8, 9], 0), ([30] * 11, 2)], [([1, 2], 1)], []]
    calls, read, lower = [0], list[int](), SharedReading._lower

    def reading() -> SharedReading:
        scratch = Scratch(tmp_path / "unfinished-x", 0.0, read.append)
        return SharedReading(model, tokens, [20, 90, 200], 40, readings, 37, scratch)

    def counted(self: SharedReading, cache: Any, ids: list[int]) -> Any:
        for inputs in lower(self, cache, ids):
            calls[0] += 1
            if calls[0] == stop_at:
                raise KeyboardInterrupt
            yield inputs

    monkeypatch.setattr(SharedReading, "_lower", counted)
    with pytest.raises(KeyboardInterrupt):
        reading()
    read.clear()
    resumed = reading()
    assert sum(read) == len(tokens)  # what was read before is told at once
    assert read[0] >= 20
    tmp_path.joinpath("unfinished-x.json").unlink()
    for one, other in zip([*resumed.states, resumed.alone], [*(again := reading()).states, again.alone], strict=True):
        assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_a_damaged_reading_begins_anew(tmp_path: Path) -> None:
    model, read = model_with(), list[int]()
    scratch = Scratch(tmp_path / "unfinished-x", 0.0, read.append)
    SharedReading(model, [index % 250 for index in range(200)], [10], 20, [[([7], 0)], []], 64, scratch)
    (kept,) = tmp_path.glob("*.senri")
    kept.write_bytes(kept.read_bytes()[:50])
    read.clear()
    SharedReading(model, [index % 250 for index in range(200)], [10], 20, [[([7], 0)], []], 64, scratch)
    assert sum(read) == 200 and read[0] < 200


def test_a_sentence_changes_the_memory_where_it_lies() -> None:
    model = model_with()
    tokens = [index % 250 for index in range(200)]
    hidden = [([7, 8, 9], 0), ([7, 8, 9], 1)]
    scratch = Scratch(None, math.inf, lambda count: None)
    shared = SharedReading(model, tokens, [10, 100], 20, [[hidden[0]], [hidden[1]], []], 64, scratch)
    states = [state["M"] for state in shared.states]
    assert min(float((a - b).abs().max()) for a, b in ((states[0], states[1]), (states[0], states[2]))) > 1e-3


def test_samples_spread_over_the_places_and_are_decided_by_the_seed(small: Any) -> None:
    samples = [make_recall_sample(small, "two_keys", 700, index) for index in range(8)]
    assert samples == [make_recall_sample(small, "two_keys", 700, index) for index in range(8)]
    assert samples[0] != make_recall_sample(dataclasses.replace(small, seed=1), "two_keys", 700, 0)
    assert [sample.place for sample in samples] == [0, 1, 2, 3, 0, 1, 2, 3]
    for sample in samples:
        assert len(sample.hidden) == 2 and [place for _, place in sample.hidden] == sorted(
            {place for _, place in sample.hidden}
        )
        (asked,) = [sentence for sentence, place in sample.hidden if place == sample.place]
        assert sample.answer.strip() in asked and sample.answer.strip() not in sample.question


def run(subject: Subject, chosen: Any) -> tuple[list[dict[str, Any]], Any]:
    done = run_units(recall_units(subject, chosen), "recall", progress=False)
    return done.results, recall_outcome(subject, chosen, done.results)


def test_shared_and_full_reading_give_the_same_answers(small: Any, bytes_tokenizer: Any) -> None:
    subject = Subject(model_with(), bytes_tokenizer, "tiny")
    shared, outcome = run(subject, small)
    full, _ = run(subject, dataclasses.replace(small, reading="full"))
    assert len(shared) == 2 and len(full) == 10

    def by_sample(results: list[dict[str, Any]], condition: str) -> dict[Any, float]:
        answers = [answer for text in results for answer in text["answers"] if answer["condition"] == condition]
        return {(answer["task"], answer["sample"]): answer["tokens_right"] for answer in answers}

    for condition in (MEMORY, WINDOW_ONLY, IN_WINDOW):
        assert by_sample(shared, condition) == by_sample(full, condition)
        assert len(by_sample(shared, condition)) == 10
    assert outcome.counts["questions"] == 10
    assert {(cell["task"], cell["samples"]) for cell in outcome.results["cells"]} == {
        ("single_noise", 5),
        ("two_keys", 5),
    }
    assert "share one reading" in outcome.summary[1]


def test_what_is_hidden_stands_before_the_question_in_the_window(small: Any, bytes_tokenizer: Any) -> None:
    read: list[str] = []

    class Recorded:
        def fork(self) -> "Recorded":
            read.append("fork")
            return self

        def logits(self, ids: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
            read.append(bytes_tokenizer.decode(ids[0].tolist()))
            return torch.zeros(1, logits_to_keep, 257)

    subject = Subject(model_with(), bytes_tokenizer, "tiny")
    text = recall_units(subject, small)[0].run.__self__  # type: ignore[attr-defined]
    (sample,) = [one for one in text.samples if one.task == "two_keys"][:1]
    for condition in (WINDOW_ONLY, IN_WINDOW):
        text._ask(Recorded(), sample, condition)
    hidden, question = [f" {sentence}" for sentence, _ in sample.hidden], f"{sample.question}{sample.answer}"[:-1]
    assert len(hidden) == 2 and read == ["fork", question, "fork", "".join([*hidden, question])]


@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"combine": "copy", "learned_read_strength": True, "write_delay": 9},
        {"combine": "gate", "num_heads": 4, "num_key_value_heads": 4},
    ],
    ids=["added", "copied", "gated"],
)
def test_a_shared_question_gives_the_logits_of_each_session(memory: dict[str, Any]) -> None:
    model = model_with(layers=4, memory_layers=(1,), **memory)
    one, elsewhere = Session(model), Session(model)
    ids = torch.randint(0, 256, (1, 90), generator=torch.Generator().manual_seed(1))
    one.read(ids[:, :80])
    elsewhere.read(ids[:, :40])
    other, state = one.fork(), elsewhere.memory_layers[1].memory_state
    assert state is not None
    other.memory_layers[1].set_memory(state, 1, "cpu")
    asked = SharedQuestion(one, 1, ids[:, 80:])
    found = [asked.logits(session, 4) for session in (one, other)]
    assert one.tokens_read == other.tokens_read == 80  # nothing is read into them
    for session, logits in zip((one, other), found, strict=True):
        torch.testing.assert_close(logits, session.fork().logits(ids[:, 80:], 4), rtol=1e-4, atol=1e-5)
    with model.memory_disabled():
        alone = asked.logits(other, 4)
        torch.testing.assert_close(alone, other.fork().logits(ids[:, 80:], 4), rtol=1e-4, atol=1e-5)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in ((found[0], found[1]), (found[0], alone)))


def test_what_the_controls_know_is_warned_of(small: Any, bytes_tokenizer: Any) -> None:
    subject = Subject(model_with(), bytes_tokenizer, "tiny")
    answer = {"task": "single_noise", "sample": 0, "depth": 0.1, "tokens_right": 1.0, "exact": True}
    answer |= {"expected": "12", "said": "12"}
    answers = [{**answer, "condition": condition} for condition in CONDITIONS]
    answers[2]["exact"] = False
    outcome = recall_outcome(
        subject, dataclasses.replace(small, tasks=["single_noise"]), [{"length": 700, "answers": answers}]
    )
    assert len(outcome.warnings) == 1 and "window only answers 100%" in outcome.warnings[0]
    assert outcome.results["cells"][0]["exact"] == {MEMORY: 1.0, WINDOW_ONLY: 1.0, OTHER_SAMPLE: 0.0, IN_WINDOW: 1.0}


def test_wrong_answers_are_shown_beside_the_right_ones(small: Any, bytes_tokenizer: Any) -> None:
    class Says:
        def fork(self) -> "Says":
            return self

        def logits(self, ids: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
            said = torch.tensor([*ids[0, -logits_to_keep + 1 :].tolist(), *bytes_tokenizer.encode("?")])
            return torch.nn.functional.one_hot(said, 257)[None].float()  # all but the last token of the answer

    subject = Subject(model_with(), bytes_tokenizer, "tiny")
    text = recall_units(subject, small)[0].run.__self__  # type: ignore[attr-defined]
    sample = text.samples[0]
    answer = text._ask(Says(), sample, MEMORY)
    assert answer["said"] == f"{sample.answer.strip()[:-1]}?" and not answer["exact"]
    right = {**answer, "exact": True, "depth": 0.9}
    guessed = [{**answer, "condition": one} for one in CONDITIONS if one != MEMORY]
    outcome = recall_outcome(subject, small, [{"length": 700, "answers": [right, answer, *guessed]}])
    (table,) = [table for table in outcome.tables if table.title.startswith("Wrong")]
    assert table.rows == [
        [sample.task, "700", f"{answer['depth']:.0%}", sample.answer.strip(), f"{sample.answer.strip()[:-1]}?"]
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["in_books"]}, "recall.text is not named"),
        ({"lengths": [200]}, "has no room for 4 places"),
        ({"samples": 5, "tasks": ["single_noise"]}, "leaves one sample alone"),
    ],
)
def test_what_cannot_be_measured_is_said_first(
    small: Any, bytes_tokenizer: Any, changes: dict[str, Any], said: str
) -> None:
    subject = Subject(model_with(), bytes_tokenizer, "tiny")
    with pytest.raises(SenriError, match=said):
        recall_units(subject, dataclasses.replace(small, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["sinlge_noise"]}, "did you mean|single_noise"),
        ({"tasks": []}, "tasks is empty"),
        ({"samples": 0}, "samples is 0"),
        ({"places": 1, "tasks": ["two_keys"]}, "fewer than the 2"),
    ],
)
def test_wrong_settings_are_named(small: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SenriError, match=said):
        dataclasses.replace(small, **changes)


@pytest.mark.parametrize("model", [{"memory_layers": (1, 2)}, {"clean_every": 2}], ids=["two", "cleaned"])
def test_memories_whose_reading_cannot_be_shared_are_read_in_full(
    model: dict[str, Any], small: Any, bytes_tokenizer: Any
) -> None:
    subject = Subject(model_with(**model), bytes_tokenizer, "tiny")
    with pytest.raises(SenriError, match="set reading=full"):
        recall_units(subject, small)
    assert recall_units(subject, dataclasses.replace(small, reading="full"))
