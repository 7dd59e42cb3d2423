"""The demo's facts: hidden at random places of the text, then asked for, with the memory and without."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from senri.data import TokenStream, chunks
from senri.data.facts import Fact, ask
from senri.errors import SenriError
from senri.evaluation.needle.text import SentenceEnds, insert
from senri.settings import load_settings

if TYPE_CHECKING:
    from senri.evaluation.reader import Reader

TYPED = "-"
"""In place of a file of facts: they are typed in the terminal."""

_FILE = "demo_facts"


@dataclass(frozen=True)
class HiddenFact:
    """A sentence that is hidden, and what it answers.

    Args:
        sentence: holds the answer word for word.
        question: asks for it.
        answer: what is to be found.

    Raises:
        SenriError: an empty field, or an answer that the sentence does not hold.
    """

    sentence: str
    question: str
    answer: str

    def __post_init__(self) -> None:
        for name, text in asdict(self).items():
            if not text.strip():
                raise SenriError(f"a fact's {name} is empty: write it down.")
        if self.answer not in self.sentence:
            raise SenriError(
                f"the answer {self.answer!r} does not stand in {self.sentence!r}: write it as the sentence has it."
            )


@dataclass(frozen=True)
class Facts:
    """What a file of facts holds.

    Args:
        facts: what is hidden, in the order in which it is asked for.

    Raises:
        SenriError: there are none.
    """

    facts: list[HiddenFact]

    def __post_init__(self) -> None:
        if not self.facts:
            raise SenriError("facts is empty: write at least one with sentence, question and answer.")


def open_facts(source: str | None) -> list[HiddenFact]:
    """Return facts from a YAML file, from the terminal (`-`), or Senri's own (None).

    Raises:
        SenriError: a file that cannot be read, holds something else than facts, or none.
    """
    return _typed() if source == TYPED else load_settings(Facts, source or _FILE).facts


def _typed() -> list[HiddenFact]:
    print("Facts to hide in the text; an empty line ends them.")
    found: list[HiddenFact] = []
    try:
        while sentence := input(f"{len(found) + 1}. something that is true: ").strip():
            question = input("   a question about it: ").strip()
            answer = input("   the answer, as the sentence has it: ").strip()
            try:
                found.append(HiddenFact(sentence, question, answer))
            except SenriError as error:
                print(f"   {error}")
    except EOFError:
        print()
    if not found:
        raise SenriError("no facts were typed: type one, or leave facts=- out for Senri's own.")
    return found


class StreamWithFacts(TokenStream):
    """A text with facts hidden in it, each after the first end of a sentence at its place.

    Args:
        stream: the text alone.
        facts: what is hidden.
        last: no fact lies behind this token of the text.
        seed: decides the places.
    """

    def __init__(self, stream: TokenStream, facts: Sequence[HiddenFact], last: int, seed: int) -> None:
        super().__init__(stream.document, stream.tokenizer, stream.block_characters)
        rng = random.Random(seed)
        tokens = [self._encode(f" {fact.sentence}") for fact in facts]
        self.places = [rng.randrange(last + 1) for _ in facts]
        self._hidden = sorted(zip(self.places, tokens, strict=True), key=lambda one: one[0])
        self.hidden_tokens = sum(len(ids) for ids in tokens)
        self._ends_sentence = SentenceEnds(stream.tokenizer)

    def __iter__(self) -> Iterator[int]:
        yield from insert(super().__iter__(), self._hidden, self._ends_sentence)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


@dataclass(frozen=True)
class Asked:
    """What one reader said to one question.

    Args:
        reader: its name.
        fact: number of the fact.
        said: up to the end of the line.
        is_right: the answer is in it, in whole words.
        tokens_right: share of the answer's tokens that are the likeliest given those before.
    """

    reader: str
    fact: int
    said: str
    is_right: bool
    tokens_right: float


def ask_facts(
    name: str, reader: "Reader", tokenizer: Any, facts: Sequence[HiddenFact], answer_tokens: int
) -> list[Asked]:
    """Ask forks of a reader for every fact.

    Args:
        name: of the reader.
        reader: what has read; it stays as it is.
        tokenizer: its tokenizer.
        facts: what is asked for.
        answer_tokens: how much longer than the right answer an answer may be.
    """
    import torch

    found = []
    for number, fact in enumerate(facts):
        question, answer = ask(Fact(**asdict(fact), key="", kind="", completion=""), "question")
        prompt, wanted = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer))
        logits = reader.fork().logits(torch.tensor([prompt + wanted[:-1]]), logits_to_keep=len(wanted))[0]
        right = float((logits.argmax(dim=-1).cpu() == torch.tensor(wanted)).float().mean())
        new = reader.fork().generate(
            torch.tensor([prompt]), max_new_tokens=len(wanted) + answer_tokens, do_sample=False
        )
        said = tokenizer.decode(new[0], skip_special_tokens=True).strip().partition("\n")[0]
        found.append(Asked(name, number, said, holds(said, fact.answer), right))
    return found


def holds(said: str, answer: str) -> bool:
    """Return whether an answer stands in what was said, whole words of it: 481740 does not say 4817."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", said, re.IGNORECASE) is not None


def read_last(reader: "Reader", tokens: Sequence[int], chunk_size: int) -> None:
    """Read tokens in chunks."""
    for chunk in chunks(tokens, chunk_size):
        reader.read(chunk)
