"""Samples of the recall test: what is hidden at which places of a text, and what is asked; all decided by the seed."""

import random
from dataclasses import dataclass

from senri.data.facts import FactMaker, ask
from senri.evaluation.needle.samples import make_single_questions
from senri.evaluation.recall.settings import RecallSettings


@dataclass(frozen=True)
class RecallSample:
    """One question and what the text hides for it.

    Attributes:
        task: its name.
        index: of the sample within its task.
        hidden: sentences, and the number of the place where each is put in; sorted by place, one a place.
        question: ends where the answer begins.
        answer: as it goes on, with a space before it.
        place: where the sentence that is asked for lies.
    """

    task: str
    index: int
    hidden: tuple[tuple[str, int], ...]
    question: str
    answer: str
    place: int


def make_recall_sample(settings: RecallSettings, task: str, length: int, index: int) -> RecallSample:
    """Make one sample.

    Args:
        settings: of the recall test.
        task: its name.
        length: of the text; samples of other lengths are others.
        index: of the sample within its task.
    """
    chosen = settings.described[task]
    rng = random.Random(f"{settings.seed}-{task}-{length}-{index}")
    if chosen.values == "facts":
        facts = FactMaker("test", ["facts"]).make(rng, chosen.hidden)
        sentences = [fact.sentence for fact in facts]
        question, answer = ask(facts[0], "question")
    else:
        questions = make_single_questions(settings.wording, chosen.values, chosen.hidden, rng)
        sentences = [one.needles[0].sentence for one in questions]
        question, answer = questions[0].text, f" {questions[0].answers[0]}"
    # Every place is asked as often as every other.
    place = index % settings.places
    others = rng.sample([other for other in range(settings.places) if other != place], chosen.hidden - 1)
    hidden = tuple(sorted(zip(sentences, [place, *others], strict=True), key=lambda one: one[1]))
    return RecallSample(task, index, hidden, question, answer, place)
