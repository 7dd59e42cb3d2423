"""RULER offline: lm-eval's tasks on texts of one's own, as many samples as asked for, the same every time."""

import json
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from senri.errors import SenriError
from senri.models import SenriConfig, SenriForCausalLM, Session

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'senri[eval]'")
for package in ("nltk", "wonderwords", "scipy"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'senri[eval]'")

from senri.evaluation.lm_harness import SenriLM  # noqa: E402
from senri.evaluation.ruler import TASKS, RulerSettings, ruler_units, run_ruler  # noqa: E402
from senri.evaluation.ruler_data import LocalData, check_room, generators  # noqa: E402

LENGTH = 1400
NEEDLES = [task for task in TASKS if task.startswith("niah")]
PLACES = ("Aberdeen", "Bergen", "Cadiz", "Delft", "Evora", "Fukuoka", "Genoa", "Haifa")
ESSAY = " ".join(
    f"The road to {place} is {10 + index} miles long! Does the ferry stop in {place}? It does when the wind is low."
    for index, place in enumerate(PLACES)
)
SQUAD = {
    "data": [
        {
            "title": place,
            "paragraphs": [
                {
                    "context": f"{place} has a lighthouse. The lighthouse of {place} has {index + 20} steps.",
                    "qas": [
                        {
                            "question": f"How many steps has the lighthouse of {place}?",
                            "answers": [{"text": f"{index + 20} steps", "answer_start": 0}],
                            "is_impossible": False,
                        },
                        {"question": f"Who painted {place}?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
        for index, place in enumerate(PLACES)
    ]
}
HOTPOT = [
    {
        "question": f"How far is it to {place}?",
        "answer": f"{index + 10} miles",
        "context": [[place, [f"{place} is a harbour. ", f"It is {index + 10} miles away."]], ["Wind", ["It blows."]]],
    }
    for index, place in enumerate(PLACES)
]


@pytest.fixture(scope="module", autouse=True)
def no_network() -> Iterator[pytest.MonkeyPatch]:
    def refuse(*args: Any) -> None:
        raise AssertionError("a test wanted the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield patch


@pytest.fixture(scope="module", autouse=True)
def prepared_needles(no_network: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import lm-eval's needles once, with one in twenty of their words.

    They are all pairs of an adjective and a noun, six million, and to list and sort these takes most of a test's time.
    """
    import wonderwords

    words = wonderwords.RandomWord()
    few = wonderwords.RandomWord(
        **{name: words.filter(include_categories=[name])[::20] for name in ("adjectives", "nouns", "verbs")}
    )
    local = LocalData(write_data(tmp_path_factory.mktemp("needles")), ["niah_single_2"], 1, LENGTH)
    with no_network.context() as patch:
        patch.setattr(wonderwords, "RandomWord", lambda: few)
        with generators("niah_single_2", 1, 0, local):
            pass


def words_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of RULER's prompts, so that these fit a short length."""
    from lm_eval.tasks.ruler import cwe_utils, fwe_utils, qa_utils, vt_utils

    templates = (cwe_utils.TEMPLATE, fwe_utils.TEMPLATE, qa_utils.TEMPLATE, vt_utils.TEMPLATE)
    needle = (
        "One of the special magic numbers for word is: 1234. Some special magic are hidden within the following text."
    )
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=["<|endoftext|>", "<|pad|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([*templates, needle, noise, ESSAY, *cwe_utils.WORDS[:2000]] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    words_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> SenriForCausalLM:
    torch.manual_seed(0)
    config = SenriConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        sliding_window=16,
        default_layer_type="sliding_attention",
        memory_layers=[0],
        memory={"segment_length": 8, "gate_init": 0.0},
    )
    return SenriForCausalLM(config).eval()


def write_data(folder: Path) -> Path:
    (folder / "essays").mkdir(parents=True)
    (folder / "essays" / "roads.txt").write_text(ESSAY)
    (folder / "squad.json").write_text(json.dumps(SQUAD))
    (folder / "hotpotqa.json").write_text(json.dumps(HOTPOT))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def settings(data: Path | None, **changes: Any) -> RulerSettings:
    values = {"lengths": [LENGTH], "tasks": "all", "samples": 2, "chunk_size": 256, "seed": 5}
    return RulerSettings(**{**values, "data": None if data is None else str(data), **changes})


def reader_of_needles(prompts: list[str]) -> Any:
    """Answer every request with all magic values that its prompt names for what it asks."""

    def generate_until(self: SenriLM, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in requests:
            prompt = request.args[0]
            prompts.append(prompt)
            asked = prompt[prompt.rindex("The special magic") :]
            needles = re.findall(r"magic \w+ for (.+?) is: ([\w-]+)\.", prompt)
            answers.append(", ".join(value for key, value in needles if key in asked))
        return answers

    return generate_until


@pytest.mark.slow
def test_all_tasks_run_offline(
    model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path, data: Path
) -> None:
    results = run_ruler(model, tokenizer, settings(data, samples=1), tokenizer_path=str(tokenizer_folder))
    assert json.loads(json.dumps(results)) == results
    assert list(results) == list(TASKS)
    for task, cells in results.items():
        (cell,) = cells.values()
        assert list(cells) == [str(LENGTH)]
        assert cell["samples"] == len(cell["outputs"]) == 1
        (output,) = cell["outputs"]
        assert 0.0 <= cell["score"] == output["score"] <= 1.0
        assert output["gold"] and all(output["gold"])
        assert output["generated"]
        assert model.config.max_position_embeddings < 150 < output["prompt_tokens"] <= LENGTH, task
    squad, hotpot = (results[task][str(LENGTH)]["outputs"][0]["gold"] for task in ("ruler_qa_squad", "ruler_qa_hotpot"))
    assert (squad, hotpot) == (["20 steps"], ["10 miles"])


def test_scores_are_those_of_lm_eval(
    model: SenriForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_folder: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts: list[str] = []
    answer = reader_of_needles(prompts)
    # Of a task's two samples the first is answered rightly, the second not at all.
    monkeypatch.setattr(SenriLM, "generate_until", lambda *args, **_: [answer(*args)[0], "no idea"])
    wanted = settings(data, tasks=NEEDLES, lengths=[600, LENGTH])
    results = run_ruler(model, tokenizer, wanted, tokenizer_path=str(tokenizer_folder))
    cells = [cell for by_length in results.values() for cell in by_length.values()]
    assert [[output["score"] for output in cell["outputs"]] for cell in cells] == [[1.0, 0.0]] * (2 * len(NEEDLES))
    assert {cell["score"] for cell in cells} == {0.5}
    assert len(prompts) == 2 * 2 * len(NEEDLES)
    # The essays of the folder are the haystack; lm-eval's step of 500 words leaves none at the smaller length.
    essays = [prompt for prompt in prompts if "The road to Aberdeen is 10 miles long!" in prompt]
    assert len(essays) == 2 * 5


def test_half_of_the_needles_is_half_the_score(
    model: SenriForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_folder: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = reader_of_needles([])
    monkeypatch.setattr(
        SenriLM, "generate_until", lambda *args, **_: [", ".join(text.split(", ")[:2]) for text in answer(*args)]
    )
    wanted = settings(data, tasks=["niah_multivalue"])
    results = run_ruler(model, tokenizer, wanted, tokenizer_path=str(tokenizer_folder))
    assert results["niah_multivalue"][str(LENGTH)]["score"] == 0.5


def prompts_of(units: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Run units and return the prompts of each."""
    heard: list[list[str]] = []

    def listen(self: SenriLM, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        heard.append([request.args[0] for request in requests])
        return ["nothing"] * len(requests)

    monkeypatch.setattr(SenriLM, "generate_until", listen)
    for _, run in units:
        run()
    return {key: prompts for (key, _), prompts in zip(units, heard, strict=True)}


def test_units_give_the_same_prompts_in_any_order(
    model: SenriForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_folder: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def units(**changes: Any) -> list[tuple[str, Any]]:
        return ruler_units(model, tokenizer, settings(data, **changes), tokenizer_path=str(tokenizer_folder))

    first = units(lengths=[LENGTH, 1500])
    assert [key for key, _ in first] == [f"{task}@{length}" for task in TASKS for length in (LENGTH, 1500)]
    prompts = prompts_of(first, monkeypatch)
    assert all(len(each) == 2 for each in prompts.values())
    random.seed(1)
    assert prompts_of(units(lengths=[1500, LENGTH])[::-1], monkeypatch) == prompts
    others = prompts_of(units(seed=6), monkeypatch)
    assert all(others[key] != prompts[key] for key in others if not key.startswith("ruler_qa"))


def test_gold_documents_are_in_the_prompt(
    model: SenriForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_folder: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = settings(data, tasks=["ruler_qa_squad", "ruler_qa_hotpot"], samples=8, lengths=[300])
    units = ruler_units(model, tokenizer, wanted, tokenizer_path=str(tokenizer_folder))
    prompts = prompts_of(units, monkeypatch)
    for index, place in enumerate(PLACES):
        assert f"The lighthouse of {place} has {index + 20} steps." in prompts["ruler_qa_squad@300"][index]
        assert f"{place} is a harbour. It is {index + 10} miles away." in prompts["ruler_qa_hotpot@300"][index]


def test_lm_eval_is_as_before_afterwards(
    model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path, data: Path
) -> None:
    import nltk
    from lm_eval.tasks.ruler import cwe_utils, niah_utils, prepare_niah, qa_utils

    owners = (nltk, cwe_utils, niah_utils, prepare_niah, qa_utils)
    before = [dict(vars(owner)) for owner in owners]
    state = random.getstate()
    wanted = settings(data, tasks=["ruler_vt", "ruler_qa_squad", "niah_single_2"], lengths=[LENGTH], samples=1)
    ruler_units(model, tokenizer, wanted, tokenizer_path=str(tokenizer_folder))  # measures prompts, which draws
    assert random.getstate() == state
    run_ruler(model, tokenizer, wanted, tokenizer_path=str(tokenizer_folder))
    for owner, values in zip(owners, before, strict=True):
        assert {name for name, value in values.items() if vars(owner)[name] is not value} <= {"__mtime__"}


def test_samples_begin_from_a_session(
    model: SenriForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_folder: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    book = Session(model)
    book.read(torch.tensor([tokenizer.encode(ESSAY)]))
    forks: list[int] = []
    fork = Session.fork
    monkeypatch.setattr(Session, "fork", lambda self: forks.append(self.tokens_read) or fork(self))
    wanted = settings(data, tasks=["niah_single_1"], lengths=[600])
    run_ruler(model, tokenizer, wanted, tokenizer_path=str(tokenizer_folder), session=book)
    assert forks == [len(tokenizer.encode(ESSAY))] * 2


def test_other_models_are_measured_too(tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path, data: Path) -> None:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    wanted = settings(data, tasks=["ruler_qa_squad"], lengths=[300])
    results = run_ruler(LlamaForCausalLM(config).eval(), tokenizer, wanted, tokenizer_path=str(tokenizer_folder))
    assert results["ruler_qa_squad"]["300"]["samples"] == 2


def refusal(model: Any, tokenizer: Any, wanted: RulerSettings) -> str:
    with pytest.raises(SenriError) as caught:
        ruler_units(model, tokenizer, wanted, tokenizer_path="unused")
    return str(caught.value)


def test_missing_files_are_named_before_anything_runs(
    model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    (data / "squad.json").unlink()
    (data / "essays" / "roads.txt").unlink()
    said = refusal(
        model, tokenizer, settings(data, tasks=["ruler_fwe", "niah_single_2", "niah_multivalue", "ruler_qa_squad"])
    )
    assert "essays/*.txt for niah_single_2, niah_multivalue and squad.json for ruler_qa_squad" in said
    assert "leave these tasks out" in said
    ruler_units(model, tokenizer, settings(data, tasks=["ruler_fwe", "ruler_qa_hotpot"]), tokenizer_path="unused")
    assert str(data / "none") in refusal(model, tokenizer, settings(data / "none", tasks=["ruler_qa_hotpot"]))


@pytest.mark.parametrize("content", ["[]", "no json", '{"data": [{"paragraphs": [{}]}]}', '{"data": 5}'])
def test_files_of_another_format_are_refused(
    content: str, model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    (data / "squad.json").write_text(content)
    said = refusal(model, tokenizer, settings(data, tasks=["ruler_qa_squad"]))
    assert f"{data / 'squad.json'} is not of the format of SQuAD 2.0" in said


def test_too_few_texts_are_refused(model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    said = refusal(model, tokenizer, settings(data, tasks=["ruler_qa_hotpot"], samples=9))
    assert "hotpotqa.json has 8 questions" in said
    (data / "essays" / "roads.txt").write_text(" \n")
    assert "holds no words" in refusal(model, tokenizer, settings(data, tasks=["niah_single_3"]))
    (data / "essays" / "roads.txt").write_bytes(b"\xff\xfe")
    assert "roads.txt is not UTF-8" in refusal(model, tokenizer, settings(data, tasks=["niah_single_3"]))


@pytest.mark.parametrize("task", ["ruler_vt", "ruler_cwe"])
def test_lengths_that_would_never_end_are_refused(
    task: str, model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    said = refusal(model, tokenizer, settings(data, tasks=[task], lengths=[LENGTH, 260]))
    assert said.startswith(f"{task} at 260 tokens: ")
    smallest = int(re.search(r"take (\d+) tokens", said)[1])
    assert 260 < smallest <= LENGTH


def test_a_tokenizer_that_is_too_fine_is_refused() -> None:
    class Bytes:
        def __call__(self, text: str) -> Any:
            return type("Encoding", (), {"input_ids": list(text.encode())})

    with pytest.raises(SenriError, match="ruler_vt cannot be made with this tokenizer"):
        check_room("ruler_vt", [131072], Bytes())


def test_a_length_without_room_for_a_needle_is_refused(
    model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path, data: Path
) -> None:
    wanted = settings(data, tasks=["niah_multikey_3"], lengths=[256])
    ((_, run),) = ruler_units(model, tokenizer, wanted, tokenizer_path=str(tokenizer_folder))
    with pytest.raises(SenriError, match="niah_multikey_3 at 256 tokens: "):
        run()


def test_missing_packages_are_named(
    model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senri.evaluation.ruler_data.PACKAGES", ("nltk", "no_such_package"))
    said = refusal(model, tokenizer, settings(data))
    assert "needs no_such_package" in said
    assert "pip install 'senri[eval]'" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["niah_singel_1"]}, "did you mean 'niah_single_1'"),
        ({"tasks": []}, "tasks is"),
        ({"lengths": []}, "lengths is"),
        ({"lengths": [512, 512]}, "none twice"),
        ({"lengths": [4096, 100]}, "lengths has 100"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": 501}, "samples is 501"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SenriError, match=said):
        settings(None, **changes)
