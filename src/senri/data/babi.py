"""bAbI's questions 1 to 5: stories of plain statements, and questions about them; from a folder, or from the Hub.

Source: Weston et al., "Towards AI-Complete Question Answering", arXiv:1502.05698. A line of a file is a number and a
statement, or a number, a question, a tab, its answer, a tab and the numbers of the statements that support it. A story
begins where the numbers begin again at 1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from senri.data.rows import hub_rows
from senri.errors import SenriError, nearest

BABI_TASKS = {
    "qa1": "one supporting fact",
    "qa2": "two supporting facts",
    "qa3": "three supporting facts",
    "qa4": "two-argument relations",
    "qa5": "three-argument relations",
}
"""The tasks, and what each asks for."""

HUB_DATASET = "RMT-team/babilong-1k-samples"
"""BABILong's own data on the Hub; its configuration `0k` holds questions with their facts alone."""

_LINE = re.compile(r"(\d+) (.+)")
_SENTENCE_END = re.compile(r"(?<=\.)\s+")


@dataclass(frozen=True)
class BabiQuestion:
    """A question and what was stated before it in its story.

    Args:
        facts: the statements, in order.
        question: what is asked.
        answer: one word (for the tasks known here).
    """

    facts: tuple[str, ...]
    question: str
    answer: str


def read_babi(task: str, source: Path | str | None = None) -> list[BabiQuestion]:
    """Return all test questions of a task.

    Args:
        task: a name of `BABI_TASKS`.
        source: a folder with bAbI's files (`qa1_single-supporting-fact_test.txt`, ...); None asks the Hub for
            `HUB_DATASET`.

    Raises:
        SenriError: an unknown task, a folder without the task's file, a line of another format, or the Hub's data
            cannot be had.
    """
    if task not in BABI_TASKS:
        raise SenriError(f"there is no task {task!r}: {nearest(task, BABI_TASKS)}")
    if source is None:
        return _hub_questions(task)
    folder = Path(source)
    if not folder.is_dir():
        raise SenriError(
            f"bAbI folder {str(folder)!r} does not exist: name a folder with files such as {task}_*_test.txt."
        )
    found = sorted(folder.glob(f"{task}_*test.txt"))
    if len(found) != 1:
        raise SenriError(
            f"folder {str(folder)!r} holds {len(found)} files named {task}_*_test.txt, but one is needed: name the "
            "folder of one bAbI language, such as tasks_1-20_v1-2/en."
        )
    return _file_questions(found[0])


def _file_questions(path: Path) -> list[BabiQuestion]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SenriError(f"{str(path)!r} cannot be read as UTF-8 text ({error}): check the file.") from error
    questions = list(_questions(path, lines))
    if not questions:
        raise SenriError(f"{str(path)!r} holds no question: name bAbI's own files.")
    return questions


def _questions(path: Path, lines: list[str]) -> Iterator[BabiQuestion]:
    facts: list[str] = []
    before = 0
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{str(path)!r}, line {index}"
        if (match := _LINE.fullmatch(line.strip())) is None:
            raise SenriError(f"{place}: a line of bAbI is a number, a space and a sentence, not {line[:60]!r}.")
        number, text = int(match[1]), match[2]
        if number == 1:
            facts = []
        elif number != before + 1:
            raise SenriError(f"{place} has the number {number} after {before}: a story counts 1, 2, 3; check the file.")
        before = number
        question, *rest = text.split("\t")
        if not rest:
            facts.append(text.strip())
        elif not facts or not rest[0].strip():
            missing = "a statement before it" if not facts else "an answer"
            raise SenriError(f"{place}: the question lacks {missing}; check the file.")
        else:
            yield BabiQuestion(tuple(facts), question.strip(), rest[0].strip())


def _hub_questions(task: str) -> list[BabiQuestion]:
    rows = hub_rows(HUB_DATASET, "0k", task, local="a folder of bAbI's files with babi=...")
    return [
        BabiQuestion(tuple(_SENTENCE_END.split(row["input"].strip())), row["question"].strip(), row["target"].strip())
        for row in rows
    ]
