"""Needles in training text: some blocks hide a fact and end with the question for it, the rest stay plain text.

Worded and tokenised as the needle test asks (`senri.evaluation.needle`), so that what is trained is what is measured.
"""

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senri.data.blocks import end_of_text, fingerprint, tokenizer_fingerprint
from senri.data.packing import tokens_of
from senri.errors import SenriError
from senri.evaluation.needle.samples import make_single_questions
from senri.evaluation.needle.settings import NeedleFormat, Values
from senri.evaluation.needle.text import SentenceEnds, insert

if TYPE_CHECKING:
    from datasets import Dataset

NO_QUESTION = -1
"""In the columns `question_start` and `answer_start`: the block is plain text."""

# Goes into every key; raise it when the same settings would give other blocks than before.
_VERSION = 1


@dataclass(frozen=True)
class NeedleMixing:
    """How needles are mixed in.

    Args:
        ratio: share of the blocks that hide needles, 0 to 1.
        format: how needle and question are worded.
        values: kinds of hidden values; one of them is drawn for each block.
        needles: how many are hidden; one of these numbers is drawn for each block. One needle is asked for.
        question_context: tokens of the text that stand between the last place for a needle and the question.

    Raises:
        SenriError: a value out of range, or several needles in a format without a {key}.
    """

    ratio: float
    format: NeedleFormat
    values: list[Values]
    needles: list[int]
    question_context: int

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise SenriError(f"ratio is {self.ratio}, but it must be a share, 0 to 1.")
        for name in ("values", "needles"):
            if not getattr(self, name):
                raise SenriError(f"{name} is empty: name at least one.")
        if min(self.needles) < 1:
            raise SenriError(f"needles has {min(self.needles)}, but at least 1 is hidden; set ratio 0 for none.")
        if max(self.needles) > 1 and not self.format.has_key:
            raise SenriError(
                f"needles has {max(self.needles)}, but the needle {self.format.needle!r} has no {{key}}, so only one "
                f"can be asked for: set needles [1], or choose a format with {{key}}."
            )
        if self.question_context < 0:
            raise SenriError(f"question_context is {self.question_context}, but it must be 0 or more.")


def with_needles(blocks: "Dataset", tokenizer: Any, settings: NeedleMixing, seed: int) -> "Dataset":
    """Turn a share of the blocks into needle samples, in their places; all blocks keep their length.

    Such a block is: text with the needles in it, `question_context` tokens of text, the question, the answer, the
    end-of-text token. The result is kept beside the blocks' file and found again there.

    Args:
        blocks: of `senri.data.token_blocks`.
        tokenizer: the one that made them.
        settings: how many, and how they are worded.
        seed: which blocks they are, and what is hidden in them.

    Returns:
        The rows of `blocks` with two more columns: `question_start`, where the last `question_context` tokens of text
        begin, and `answer_start`, the first token of the answer; -1 in plain text.

    Raises:
        SenriError: a block is too short for needles and question.
    """
    from datasets import Features, Value

    count = round(settings.ratio * len(blocks))
    chosen = set(random.Random(f"{seed}-needle-blocks").sample(range(len(blocks)), count))
    maker = _Maker(tokenizer, settings, seed)

    def mixed(rows: list[list[int]], indices: list[int]) -> dict[str, list[Any]]:
        made = [
            maker.make(row, index) if index in chosen else (row, NO_QUESTION, NO_QUESTION)
            for row, index in zip(rows, indices, strict=True)
        ]
        input_ids, questions, answers = zip(*made, strict=True)
        return {"input_ids": [*input_ids], "question_start": [*questions], "answer_start": [*answers]}

    identity = (blocks._fingerprint, tokenizer_fingerprint(tokenizer), maker.end, asdict(settings), seed)
    key = fingerprint("needles", _VERSION, *identity)
    files = blocks.cache_files
    added = {"question_start": Value("int32"), "answer_start": Value("int32")}
    return blocks.map(
        mixed,
        with_indices=True,
        input_columns=["input_ids"],
        batched=True,
        features=Features({**blocks.features, **added}),
        new_fingerprint=key,
        cache_file_name=str(Path(files[0]["filename"]).parent / f"needles-{key}.arrow") if files else None,
        load_from_cache_file=True,
        desc="hiding needles",
    )


class _Maker:
    """Makes needle samples of blocks; a block's sample depends on the seed and on its number alone."""

    def __init__(self, tokenizer: Any, settings: NeedleMixing, seed: int) -> None:
        self.end = end_of_text(tokenizer)
        self._tokenizer, self._settings, self._seed = tokenizer, settings, seed
        self._ends_sentence = SentenceEnds(tokenizer)

    def make(self, block: list[int], index: int) -> tuple[list[int], int, int]:
        """Return the sample's tokens, where its question's context begins, and where its answer does."""
        settings = self._settings
        rng = random.Random(f"{self._seed}-needle-{index}")
        questions = make_single_questions(
            settings.format, rng.choice(settings.values), rng.choice(settings.needles), rng
        )
        asked = rng.choice(questions)
        question = tokens_of(asked.text, self._tokenizer)
        answer = [*tokens_of(f" {asked.answers[0]}", self._tokenizer), self.end]
        hidden = [
            (needle.depth, tokens_of(f" {needle.sentence}", self._tokenizer))
            for one in questions
            for needle in one.needles
        ]
        taken = sum(len(ids) for _, ids in hidden) + settings.question_context + len(question) + len(answer)
        room = len(block) - taken
        if room < 1:
            raise SenriError(
                f"a block has {len(block)} tokens, but needles, question and answer have {taken}, which leaves no text "
                f"to hide them in: make blocks longer, or question_context or needles fewer."
            )
        places = sorted(((round(depth * room), ids) for depth, ids in hidden), key=lambda one: one[0])
        body = list(insert(block[:room], places, self._ends_sentence))
        context = block[room : room + settings.question_context]
        sample = [*body, *context, *question, *answer]
        return sample, len(body), len(sample) - len(answer)
