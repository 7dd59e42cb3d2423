"""What BABILong's questions are asked with: instruction, worked examples, possible answers, and how answers are scored.

As in Kuratov et al., "BABILong", arXiv:2406.10149: an instruction and a few examples for each task, and a scorer that
wants the right label and no other one. The wording here is Senri's own. No example uses a task's labels, so that an
answer copied from an example is never right.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from senri.data.babi import BabiQuestion

_PLACES = frozenset({"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"})

InstructionPlace = Literal["after", "before"]


@dataclass(frozen=True)
class TaskPrompt:
    """How the questions of a task are asked.

    Args:
        instruction: what to do.
        examples: with answers.
        labels: every answer that the task has.
    """

    instruction: str
    examples: tuple[BabiQuestion, ...]
    labels: Set[str]

    def around(self, question: str, instruction: InstructionPlace) -> tuple[str, str]:
        """Return what is read before the text and after it.

        Args:
            question: what is asked.
            instruction: whether instruction and examples stand after the text or, as in the paper, before it.
        """
        shown = "\n\n".join([self.instruction, *map(_example, self.examples)])
        asked = f"Question: {question}\nAnswer:"
        if instruction == "before":
            return f"{shown}\n\nText:\n", f"\n\n{asked}"
        return "", f"\n\n{shown}\n\nNow the text before these examples.\n{asked}"


def _example(example: BabiQuestion) -> str:
    return f"Text: {' '.join(example.facts)}\nQuestion: {example.question}\nAnswer: {example.answer}"


_ABOUT = "A text holds a few plain facts about {subject} among other matter. Use these facts alone. "
_ONE_WORD = "Answer with one word, {kind}."

TASK_PROMPTS = {
    "qa1": TaskPrompt(
        _ABOUT.format(subject="where people are")
        + "Whoever moved more than once is where the last move led. "
        + _ONE_WORD.format(kind="a place"),
        (
            BabiQuestion(("Ida walked to the attic.", "Otto ran to the porch."), "Where is Ida?", "attic"),
            BabiQuestion(
                ("Nell ran to the barn.", "Hugo walked to the cellar.", "Nell walked to the porch."),
                "Where is Nell?",
                "porch",
            ),
        ),
        _PLACES,
    ),
    "qa2": TaskPrompt(
        _ABOUT.format(subject="people and the things they carry")
        + "A thing goes where its carrier goes, and stays where it is put down. "
        + _ONE_WORD.format(kind="a place"),
        (
            BabiQuestion(
                ("Ida walked to the attic.", "Ida took the lamp.", "Ida ran to the porch."),
                "Where is the lamp?",
                "porch",
            ),
            BabiQuestion(
                ("Otto took the kettle.", "Otto ran to the barn.", "Otto left the kettle.", "Otto ran to the cellar."),
                "Where is the kettle?",
                "barn",
            ),
        ),
        _PLACES,
    ),
    "qa3": TaskPrompt(
        _ABOUT.format(subject="people and the things they carry")
        + "A thing goes where its carrier goes, and stays where it is put down; say where it was earlier. "
        + _ONE_WORD.format(kind="a place"),
        (
            BabiQuestion(
                ("Ida took the lamp.", "Ida walked to the attic.", "Ida ran to the porch."),
                "Where was the lamp before the porch?",
                "attic",
            ),
            BabiQuestion(
                (
                    "Otto ran to the barn.",
                    "Otto took the kettle.",
                    "Nell ran to the attic.",
                    "Otto went to the cellar.",
                ),
                "Where was the kettle before the cellar?",
                "barn",
            ),
        ),
        _PLACES,
    ),
    "qa4": TaskPrompt(
        _ABOUT.format(subject="which place lies on which side of another") + _ONE_WORD.format(kind="a place"),
        (
            BabiQuestion(
                ("The attic is north of the barn.", "The porch is south of the barn."),
                "What is north of the barn?",
                "attic",
            ),
            BabiQuestion(
                ("The cellar is east of the porch.", "The porch is east of the barn."),
                "What is the porch east of?",
                "barn",
            ),
        ),
        _PLACES,
    ),
    "qa5": TaskPrompt(
        _ABOUT.format(subject="who gave what to whom") + _ONE_WORD.format(kind="a name or a thing"),
        (
            BabiQuestion(
                ("Ida took the lamp.", "Ida gave the lamp to Otto.", "Nell ran to the barn."),
                "Who did Ida give the lamp to?",
                "Otto",
            ),
            BabiQuestion(
                ("Hugo took the kettle.", "Hugo handed the kettle to Nell."), "What did Hugo give to Nell?", "kettle"
            ),
            BabiQuestion(("Otto took the ring.", "Otto passed the ring to Ida."), "Who gave the ring to Ida?", "Otto"),
        ),
        frozenset({"Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"}),
    ),
}


def is_correct(question: BabiQuestion, output: str, labels: Set[str]) -> bool:
    """Tell whether an answer names the right label and no other one, as BABILong's scorer does.

    Only the first sentence of the first line counts, in lower case. Labels that the question itself names are never
    answers, and may be repeated.

    Args:
        question: what was asked.
        output: what the model generated.
        labels: every answer of the task.
    """
    first_line = output.strip().lower().partition("\n")[0]
    sentence = first_line.partition(".")[0]
    asked = question.question.lower()
    possible = {label.lower() for label in labels if label.lower() not in asked}
    return {label for label in possible if label in sentence} == {question.answer.lower()}
