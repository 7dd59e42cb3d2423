"""RULER at chosen lengths: lm-eval's 13 tasks and scorers, with fewer samples and, where asked, with local texts.

Source: Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv:2404.06654, as
lm-eval 0.4.13 has it in `lm_eval/tasks/ruler`. Needs lm-eval: `pip install 'senri[eval]'`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from senri.errors import SenriError, nearest
from senri.evaluation.ruler_data import LocalData, check_packages, check_room, generators

TASKS = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "ruler_vt",
    "ruler_cwe",
    "ruler_fwe",
    "ruler_qa_squad",
    "ruler_qa_hotpot",
)
SHORTEST = 256
"""Below so many tokens lm-eval's frequent-words task has no three words to ask for."""

MOST_SAMPLES = 500
"""What lm-eval makes of each task at each length."""

Cell = dict[str, Any]


@dataclass
class RulerSettings:
    """What to run.

    Args:
        lengths: tokens of prompt and answer together.
        tasks: of the 13, or all.
        samples: of each task at each length.
        data: a folder with `essays/*.txt` (in place of Paul Graham's essays), `squad.json` (SQuAD 2.0, as its dev file)
            and `hotpotqa.json` (HotpotQA, as its dev distractor file), as far as the tasks need them; None for
            lm-eval's own downloads.
        chunk_size: tokens of one forward pass of a Senri model.
        seed: of the samples; the same seed, tokenizer and data give the same prompts.

    Raises:
        SenriError: an unknown task, a list that is empty or names something twice, or a number out of range.
    """

    lengths: list[int]
    tasks: list[str] | Literal["all"]
    samples: int
    data: str | None
    chunk_size: int
    seed: int

    def __post_init__(self) -> None:
        for task in self.task_names:
            if task not in TASKS:
                raise SenriError(f"tasks: RULER has no task {task!r}: {nearest(task, TASKS)}.")
        for name, values in (("lengths", self.lengths), ("tasks", self.task_names)):
            if not values or len({*values}) < len(values):
                raise SenriError(f"{name} is {values}, but it must name at least one, and none twice.")
        if min(self.lengths) < SHORTEST:
            raise SenriError(f"lengths has {min(self.lengths)}, but RULER's prompts need at least {SHORTEST} tokens.")
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise SenriError(f"samples is {self.samples}, but it must be between 1 and {MOST_SAMPLES}.")
        if self.chunk_size < 1:
            raise SenriError(f"chunk_size is {self.chunk_size}, but it must be at least 1.")
        if not 0 <= self.seed < 2**32:
            raise SenriError(f"seed is {self.seed}, but it must be at least 0 and below 2**32.")

    @property
    def task_names(self) -> list[str]:
        """The tasks to run, in order."""
        return list(TASKS) if self.tasks == "all" else list(self.tasks)


def run_ruler(
    model: Any, tokenizer: Any, settings: RulerSettings, *, tokenizer_path: str, session: Any = None
) -> dict[str, dict[str, Cell]]:
    """Run all tasks at all lengths.

    Args:
        model: a loaded Senri model, which reads prompts as streams, or any other causal model of transformers, whose
            prompts lm-eval cuts to what the model allows.
        tokenizer: its tokenizer.
        settings: what to run.
        tokenizer_path: folder or hub id of the tokenizer, for lm-eval's generators.
        session: a session or session file of a Senri model; every sample begins from a copy.

    Returns:
        `{task: {length: cell}}`, lengths as text; a cell has `score` in [0, 1], `samples` (lm-eval leaves out those
        that do not fit the length), and `outputs`, per sample `prompt_tokens`, `gold`, `generated` and `score`.

    Raises:
        SenriError: as for `ruler_units`, and a length that is too short for a task's prompts.
    """
    results: dict[str, dict[str, Cell]] = {}
    for key, run in ruler_units(model, tokenizer, settings, tokenizer_path=tokenizer_path, session=session):
        task, _, length = key.partition("@")
        results.setdefault(task, {})[length] = run()
    return results


def ruler_units(
    model: Any, tokenizer: Any, settings: RulerSettings, *, tokenizer_path: str, session: Any = None
) -> list[tuple[str, Callable[[], Cell]]]:
    """Return the work piece by piece: one `(key, run)` per task and length, in any order and as often as one likes.

    A key is `task@length`; `run()` returns the cell of `run_ruler`. Arguments are those of `run_ruler`.

    Raises:
        SenriError: lm-eval or a package of its RULER tasks is missing, a local file is missing or of another format, a
            tokenizer or length for which lm-eval's generators would never end, or a session that does not fit.
    """
    check_packages()
    from senri.evaluation.lm_harness import SenriLM

    local = None
    if settings.data is not None:
        local = LocalData(Path(settings.data), settings.task_names, settings.samples, max(settings.lengths))
    lm = SenriLM(pretrained=model, tokenizer=tokenizer, chunk_size=settings.chunk_size, session=session)
    for task in settings.task_names:
        check_room(task, settings.lengths, tokenizer)

    def run(task: str, length: int) -> Cell:
        with generators(task, settings.samples, settings.seed, local):
            loaded = _load(task, length, tokenizer_path)
        return _answer(lm, task, length, loaded)

    return [
        (f"{task}@{length}", functools.partial(run, task, length))
        for task in settings.task_names
        for length in settings.lengths
    ]


def _load(task: str, length: int, tokenizer_path: str) -> dict[str, Any]:
    """Let lm-eval make the samples of one task and length."""
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager(
        include_path=str(Path(lm_eval.tasks.__file__).parent / "ruler"),
        include_defaults=False,  # reading thousands of other tasks takes a while
        metadata={"tokenizer": tokenizer_path, "max_seq_lengths": [length]},
    )
    try:
        loaded: dict[str, Any] = manager.load([task])
    except ValueError as error:
        raise SenriError(f"{task} at {length} tokens: {error}") from error
    except (OSError, LookupError) as error:
        raise SenriError(
            f"{task} needs texts that could not be downloaded ({type(error).__name__}): connect to the network, or "
            "name a folder of local ones as data."
        ) from error
    loaded["tasks"][task].set_config(key="num_fewshot", value=0)
    return loaded


def _answer(lm: Any, task: str, length: int, loaded: dict[str, Any]) -> Cell:
    """Let the model answer, and score the answers."""
    from lm_eval.evaluator import evaluate

    found = evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0)
    outputs = [
        {
            "prompt_tokens": len(lm.tok_encode(sample["arguments"][0][0])),
            "gold": list(sample["doc"]["outputs"]),
            "generated": sample["resps"][0][0],
            "score": float(sample[str(length)]),
        }
        for sample in found["samples"][task]
    ]
    score = float(found["results"][task][f"{length},none"])
    return {"score": score, "samples": len(outputs), "outputs": outputs}
