"""What lm-eval's RULER generators are given and kept from: few seeded samples, local texts, and no endless search."""

import functools
import importlib.util
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from senri.errors import SenriError

ESSAY_TASKS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
QUESTIONS = {"ruler_qa_squad": ("squad.json", "read_squad"), "ruler_qa_hotpot": ("hotpotqa.json", "read_hotpotqa")}
"""File of a question task in a folder of local data, and lm-eval's function that makes questions of it."""

PACKAGES = ("lm_eval", "nltk", "scipy", "wonderwords")

_SAMPLERS = {
    "niah_utils": "generate_samples",
    "vt_utils": "sys_vartrack_w_noise_random",
    "cwe_utils": "sys_word_pair_random",
    "fwe_utils": "sys_kwext",
    "qa_utils": "generate_samples",
}
"""The function that makes the samples, by lm-eval's module; all make 500 where they are not told otherwise."""

_DEFAULT_SAMPLES = 500
_EXAMPLE_LENGTH = 500  # tokens of the worked example in a variable-tracking prompt
_LONGEST_STEP = 500  # words by which an essay haystack is lengthened until it is too long


class LocalData:
    """Texts of a folder instead of downloads.

    Args:
        folder: with `essays/*.txt`, `squad.json` and `hotpotqa.json`, as far as the tasks need them.
        tasks: that will be run.
        samples: of each task.
        longest: tokens of the longest prompt.

    Raises:
        SenriError: a file that a task needs is missing, cannot be read, is of another format or has too few questions.
    """

    def __init__(self, folder: Path, tasks: Sequence[str], samples: int, longest: int) -> None:
        needed = {"essays/*.txt": [task for task in tasks if task in ESSAY_TASKS]}
        needed |= {QUESTIONS[task][0]: [task] for task in tasks if task in QUESTIONS}
        missing = [
            f"{name} for {', '.join(users)}" for name, users in needed.items() if users and not _found(folder, name)
        ]
        if missing:
            raise SenriError(
                f"data folder {str(folder)!r} lacks {' and '.join(missing)}: put them there, leave these tasks out, or "
                "set data to null for lm-eval's own downloads."
            )
        words = " ".join(_read(path) for path in _found(folder, "essays/*.txt")).split()
        # RULER's own generator repeats essays that are too short for a length; lm-eval's would make shorter prompts.
        self.essays = words * -(-(longest + 2 * _LONGEST_STEP) // len(words)) if words else []
        if needed["essays/*.txt"] and not words:
            raise SenriError(f"{folder / 'essays'} holds no words: put texts there.")
        self.questions = {
            task: _questions(folder / QUESTIONS[task][0], QUESTIONS[task][1], samples)
            for task in tasks
            if task in QUESTIONS
        }

    def haystack(self, original: Callable[[str], Any], type_haystack: str) -> Any:
        """Return the words of the essays, or what lm-eval's own function has for other kinds of haystack."""
        return self.essays if type_haystack == "essay" else original(type_haystack)


@contextmanager
def generators(task: str, samples: int, seed: int, local: LocalData | None) -> Iterator[None]:
    """Let lm-eval's generator of a task make so many samples, seeded, and of local texts; all is put back afterwards.

    What it prints about every prompt that it measures is kept from the terminal.

    Args:
        task: whose samples will be made.
        samples: how many.
        seed: of them.
        local: texts instead of downloads.
    """
    name = _module_name(task)
    with ExitStack() as changes:
        changes.enter_context(redirect_stdout(io.StringIO()))
        if local is not None:
            # The module of the needles, which lm-eval imports for every task, asks nltk for a download when it is
            # imported, and without network waits for it.
            changes.enter_context(_replaced(importlib.import_module("nltk"), download=lambda *args, **kwargs: False))
        module = _module(name)
        if name == "niah_utils":
            needles = _module("prepare_niah")
            if local is None:
                needles.download_nltk_resources()
            else:
                haystack = functools.partial(local.haystack, needles.get_haystack)
                changes.enter_context(_replaced(module, get_haystack=haystack))
                changes.enter_context(_replaced(needles, cached_sent_tokenize=_sentences))
        elif name == "cwe_utils":
            changes.enter_context(_replaced(module, RNG=random.Random(seed)))
        elif name == "qa_utils":
            changes.enter_context(
                _replaced(module, generate_input_output=_with_copied_documents(module.generate_input_output))
            )
            if local is not None:
                found = local.questions[task]
                changes.enter_context(_replaced(module, **{QUESTIONS[task][1]: lambda: found}))
        sampler = _SAMPLERS[name]
        changes.enter_context(_replaced(module, **{sampler: _limited(getattr(module, sampler), samples)}))
        changes.enter_context(_seeded(seed))
        yield


def check_packages() -> None:
    """Refuse to begin without what lm-eval's RULER tasks import.

    Raises:
        SenriError: a package is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SenriError(f"RULER needs {', '.join(missing)}: install what is missing with pip install 'senri[eval]'.")


def check_room(task: str, lengths: Sequence[int], tokenizer: Any) -> None:
    """Refuse lengths for which lm-eval's generator would never end: it tries until a prompt fits, and none would.

    Raises:
        SenriError: not even the smallest prompt of the task has that few tokens.
    """

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    def smallest(length: int) -> int:
        if task == "ruler_vt":
            tracking = _module("vt_utils")
            example, answer = tracking.generate_input_output(5, 1, 4, is_icl=True)
            worked = count(f"{example} {answer}")
            if worked + 30 > _EXAMPLE_LENGTH:
                raise SenriError(
                    f"ruler_vt cannot be made with this tokenizer: its worked example takes {worked} tokens, and "
                    f"lm-eval allows {_EXAMPLE_LENGTH - 30}; leave ruler_vt out."
                )
            text, answer = tracking.generate_input_output(10, 1, 4)
            return worked + count(f"{text} {answer}") + 30
        if task == "ruler_cwe":
            example, text, answer = _module("cwe_utils").generate_input_output(10, length)
            return count(f"{example}\n{text} {answer}") + 120
        if task == "ruler_fwe":
            return count(_module("fwe_utils").TEMPLATE)
        return 0  # the others give up by themselves

    with _seeded(0):  # a prompt is drawn to be measured
        for length in lengths:
            needed = smallest(length)
            if needed > length:
                raise SenriError(
                    f"{task} at {length} tokens: with this tokenizer its smallest prompt and answer take {needed} "
                    "tokens; leave out this length or this task."
                )


def _limited(sampler: Callable[..., Any], samples: int) -> Callable[..., Any]:
    """Return the sampler with another default of samples; fewer that are asked for (one worked example) stay."""

    def sample(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("num_samples", _DEFAULT_SAMPLES) == _DEFAULT_SAMPLES:
            kwargs["num_samples"] = samples
        return sampler(*args, **kwargs)

    return sample


def _with_copied_documents(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Give the generator a list of its own: it shuffles it, away from the numbers that questions know documents by."""

    def copying(index: int, num_docs: int, qas: list[Any], docs: list[str]) -> Any:
        return generate(index, num_docs, qas=qas, docs=list(docs))

    return copying


@functools.lru_cache(maxsize=8)  # the samples of a length are made of the same text
def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


def _questions(path: Path, reader: str, samples: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return lm-eval's questions and documents of a file."""
    module = _module("qa_utils")
    try:
        content = json.loads(_read(path))
        with _replaced(module, download_json=lambda url: content):
            # Without the cache around it, which would hand these out as downloads.
            found: tuple[list[dict[str, Any]], list[str]] = getattr(module, reader).__wrapped__()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kind = "SQuAD 2.0's dev file" if reader == "read_squad" else "HotpotQA's dev distractor file"
        raise SenriError(f"{path} is not of the format of {kind} ({type(error).__name__}: {error}).") from error
    if len(found[0]) < samples:
        raise SenriError(f"{path} has {len(found[0])} questions with an answer, fewer than samples ({samples}).")
    return found


def _found(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SenriError(f"{path} is not UTF-8 text.") from None
    except OSError as error:
        raise SenriError(f"{path} cannot be read: {error.strerror}.") from None


@contextmanager
def _replaced(owner: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what lm-eval's generators draw from, and go on afterwards as if nothing had been drawn."""
    import numpy as np

    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _module_name(task: str) -> str:
    if task.startswith("niah"):
        return "niah_utils"
    return "qa_utils" if task in QUESTIONS else f"{task.removeprefix('ruler_')}_utils"


def _module(name: str) -> Any:
    module: Any = importlib.import_module(f"lm_eval.tasks.ruler.{name}")
    # lm-eval loads the module of a task anew unless it carries this stamp; a fresh one would be without the changes.
    module.__mtime__ = Path(module.__file__).stat().st_mtime_ns
    return module
