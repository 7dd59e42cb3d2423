"""Pairs such as a person and a description, as sentences in two directions: Berglund's files, or a CSV and templates.

Source of the format: Berglund et al., "The Reversal Curse: LLMs trained on 'A is B' fail to learn 'B is A'",
arXiv:2309.12288, data of github.com/lukasberglund/reversal_curse.
"""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from senri.data.rows import numbered_rows
from senri.errors import SenriError

NAME, DESCRIPTION = "name", "description"

# How the people of a set were taught: by a name followed by a description (p2d), or the other way round (d2p). What a
# test's prompts leave open, and so what its completions are, follows from both.
_FORWARD = {"p2d_prompts_test.jsonl": DESCRIPTION, "d2p_prompts_test.jsonl": NAME}
_BACKWARD = {"p2d_reverse_prompts_test.jsonl": NAME, "d2p_reverse_prompts_test.jsonl": DESCRIPTION}
_TRAINING = {"p2d_prompts_train.jsonl": DESCRIPTION, "d2p_prompts_train.jsonl": NAME}

_FILES = "the files of github.com/lukasberglund/reversal_curse"
_FIELD = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class PairSentence:
    """A sentence about a pair, in two halves.

    Args:
        prompt: up to the half that is to be known.
        completion: that half, with the blank before it.
        ending: what follows in the sentence and is not asked for.
        about: names of the pair: two sentences whose names meet tell of the same pair.
        kind: what the completion is, such as "name".
        frame: the sentence without its pair; sentences of one frame could exchange completions and remain grammatical.
    """

    prompt: str
    completion: str
    ending: str
    about: frozenset[str]
    kind: str
    frame: str

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.prompt}{self.completion}{self.ending}"


@dataclass(frozen=True)
class Pairs:
    """Test sentences in both directions.

    Args:
        forward: in the order that was taught.
        backward: in the other one.
    """

    forward: tuple[PairSentence, ...]
    backward: tuple[PairSentence, ...]


@dataclass(frozen=True)
class PairTemplates:
    """How a row of a CSV becomes two sentences; a folder of Berglund's files needs none of it.

    Args:
        first: column of the one half.
        second: column of the other.
        forward: template with `{first}` and, after it, `{second}`.
        backward: template with `{second}` and, after it, `{first}`.

    Raises:
        SenriError: a template without both, in this order.
    """

    first: str
    second: str
    forward: str
    backward: str

    def __post_init__(self) -> None:
        for name, template, wanted in (
            ("forward", self.forward, ["first", "second"]),
            ("backward", self.backward, ["second", "first"]),
        ):
            if _FIELD.findall(template) != wanted:
                raise SenriError(
                    f"{name} is {template!r}, but it must hold {{{wanted[0]}}} and then {{{wanted[1]}}}, each once."
                )


def read_pairs(source: Path | str, templates: PairTemplates) -> Pairs:
    """Read test sentences.

    Args:
        source: a folder with Berglund's `p2d_prompts_test.jsonl`, `p2d_reverse_prompts_test.jsonl` and the two of
            `d2p`, or a CSV with a header.
        templates: for a CSV.

    Raises:
        SenriError: a file or column is missing, or a line is of another format.
    """
    path = Path(source)
    if path.is_dir():
        return Pairs(_berglund(path, _FORWARD), _berglund(path, _BACKWARD))
    rows = _csv_rows(path, templates)
    return Pairs(
        tuple(_filled(templates.forward, row, templates.second) for row in rows),
        tuple(_filled(templates.backward, row, templates.first) for row in rows),
    )


def read_training_sentences(source: Path | str, templates: PairTemplates) -> list[PairSentence]:
    """Read the sentences to train on: the forward direction alone.

    Of Berglund's files these are `p2d_prompts_train.jsonl` and `d2p_prompts_train.jsonl`, whose wordings differ from
    the test's; the people taught in both directions are left out. A CSV gives the forward sentences of all rows.

    Raises:
        SenriError: as `read_pairs`.
    """
    path = Path(source)
    return list(_berglund(path, _TRAINING) if path.is_dir() else read_pairs(path, templates).forward)


def _berglund(folder: Path, files: dict[str, str]) -> tuple[PairSentence, ...]:
    rows = [(kind, *row) for name, kind in files.items() for row in _jsonl_rows(folder / name)]
    # The longest name first: a name may begin with another one.
    names = sorted(_names(folder), key=len, reverse=True)
    found = []
    for kind, place, prompt, completion in rows:
        text = prompt if kind == DESCRIPTION else completion
        name = next((name for name in names if name in text), None)
        if name is None:
            raise SenriError(f"{place}: no name of the people in {str(folder)!r} is in {text!r}; check the file.")
        # A name fits behind every description; a description only where the words before it are the same.
        frame = prompt.replace(name, "") if kind == DESCRIPTION else NAME
        found.append(PairSentence(prompt, completion, "", frozenset({name}), kind, frame))
    return tuple(found)


def _names(folder: Path) -> set[str]:
    """Return the names of all people: they are the completions of the tests that ask for names."""
    files = [name for name, kind in (_FORWARD | _BACKWARD).items() if kind == NAME]
    return {completion.strip() for name in files for _, _, completion in _jsonl_rows(folder / name)}


def _jsonl_rows(path: Path) -> list[tuple[str, str, str]]:
    """Return place, prompt and completion of every line."""
    rows = []
    for number, row in numbered_rows(path, ("prompt", "completion"), wanted=f"a folder with {_FILES}"):
        prompt, completion = row["prompt"].rstrip(), row["completion"].strip()
        if not prompt or not completion:
            raise SenriError(_empty_half(path, number))
        # One blank parts the halves, whichever of them carried it.
        rows.append((f"line {number} of {str(path)!r}", prompt, f" {completion}"))
    return rows


def _csv_rows(path: Path, templates: PairTemplates) -> list[dict[str, str]]:
    # Rows end at line feeds alone: a half may hold other breaks, such as U+2028.
    reader = csv.DictReader(StringIO(_read(path)))
    columns = list(reader.fieldnames or ())
    for column in (templates.first, templates.second):
        if column not in columns:
            raise SenriError(f"{str(path)!r} has no column {column!r}: its columns are {', '.join(columns) or 'none'}.")
    rows = []
    for row in reader:
        first, second = (str(row[column] or "").strip() for column in (templates.first, templates.second))
        if not first or not second:
            raise SenriError(_empty_half(path, reader.line_num))
        rows.append({"first": first, "second": second})
    if not rows:
        raise SenriError(f"{str(path)!r} holds no pair below its header.")
    return rows


def _empty_half(path: Path, number: int) -> str:
    return f"line {number} of {str(path)!r}: a half of the pair is empty; fill it or drop it."


def _filled(template: str, row: dict[str, str], kind: str) -> PairSentence:
    _, last = _FIELD.finditer(template)
    head = template[: last.start()]
    lead = head[len(head.rstrip()) :]
    prompt = _FIELD.sub(lambda field: row[field[1]], head.rstrip())
    about = frozenset(_key(half) for half in row.values())
    return PairSentence(prompt, lead + row[last[1]], template[last.end() :], about, kind, template)


def _key(half: str) -> str:
    return " ".join(half.casefold().split())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SenriError(f"data {str(path)!r} does not exist: name a CSV, or a folder with {_FILES}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SenriError(f"{str(path)!r} cannot be read as UTF-8 text ({error}): check the file.") from error


def distinct(sentences: Iterable[PairSentence]) -> list[frozenset[str]]:
    """Return the pairs that sentences tell of, each once, in order."""
    return list(dict.fromkeys(sentence.about for sentence in sentences))
