"""The demo's facts: from a file, typed, or Senri's own; hidden where they belong; asked of whoever has read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from senri.cli.demo_facts import Asked, HiddenFact, StreamWithFacts, ask_facts, open_facts
from senri.data import TokenStream, open_document
from senri.errors import SenriError

FACT = HiddenFact("Marta keeps the key under the pot.", "Where does Marta keep the key?", "under the pot")


class Letters:
    """A tokenizer with a token for every letter."""

    def __call__(self, text: str, **_kwargs: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: Any, **_kwargs: Any) -> str:
        return "".join(chr(int(one)) for one in ids)


class Says:
    """A reader that always says the same."""

    def __init__(self, text: str) -> None:
        self.text = text

    def fork(self) -> "Says":
        return self

    def logits(self, ids: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
        letters = [ord(letter) for letter in self.text.ljust(logits_to_keep)[:logits_to_keep]]
        return torch.nn.functional.one_hot(torch.tensor([letters]), 200).float()

    def generate(self, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([[ord(letter) for letter in self.text[: kwargs["max_new_tokens"]]]])


def test_senris_own_facts_are_facts() -> None:
    facts = open_facts(None)
    assert len({fact.question for fact in facts}) == len(facts) > 3


def test_facts_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"facts:\n  - {{sentence: '{FACT.sentence}', question: '{FACT.question}', answer: under the pot}}\n"
    )
    assert open_facts(str(path)) == [FACT]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("facts: []", "facts is empty"),
        ("facts: [{sentence: A cat., question: 'What?', answer: dog}]", "'dog' does not stand in 'A cat.'"),
        ("facts: [{sentence: A cat., question: '', answer: cat}]", "question is empty"),
        ("facts: [{sentence: A cat., answer: cat}]", "question"),
        ("fact: []", "facts"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SenriError, match=said) as error:
        open_facts(str(path))
    assert "mine.yaml" in str(error.value)


def test_facts_are_typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(["A cat sits here.", "Who?", "dog", FACT.sentence, FACT.question, FACT.answer, ""])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(lines))
    assert open_facts("-") == [FACT]
    assert "does not stand in" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda _prompt: "")
    with pytest.raises(SenriError, match="no facts were typed"):
        open_facts("-")


def test_facts_lie_at_ends_of_sentences_in_front_of_what_is_in_view(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("A lamp burned. " * 200)
    plain = TokenStream(open_document(str(path)), Letters(), 1000)
    stream = StreamWithFacts(plain, [FACT, HiddenFact("It is 7.", "What?", "7")], 1500, seed=0)
    text = Letters().decode(stream)
    assert max(stream.places) <= 1500 and len(text) == 3000 + stream.hidden_tokens
    assert f"burned. {FACT.sentence} A lamp" in text.replace("  ", " ")
    assert text.replace(f" {FACT.sentence}", "").replace(" It is 7.", "") == "A lamp burned. " * 200
    assert StreamWithFacts(plain, [FACT], 1500, seed=0).places != StreamWithFacts(plain, [FACT], 1500, seed=1).places


def test_an_answer_is_right_that_holds_what_was_hidden() -> None:
    (right,) = ask_facts("it", Says(" Under the pot, I think.\nMore"), Letters(), [FACT], 30)  # type: ignore[arg-type]
    assert right.said == "Under the pot, I think." and right.is_right
    (exact,) = ask_facts("it", Says(" under the pot"), Letters(), [FACT], 30)  # type: ignore[arg-type]
    assert exact == Asked("it", 0, "under the pot", True, 1.0)
    (wrong,) = ask_facts("it", Says(" in the shed"), Letters(), [FACT], 30)  # type: ignore[arg-type]
    assert not wrong.is_right and wrong.tokens_right < 0.5
