"""Senri on Google Colab (or any machine), one word each: `python scripts/colab.py train | eval | test`.

    train   runs the recipe of config/colab.yaml into Google Drive if it is mounted, else into ./runs; the same command
            goes on where it stopped
    eval    measures the trained model and writes results/report.html
    test    trains and measures a tiny model, without the network, and says whether the installation is sound

All settings are in config/colab.yaml. Where Senri cannot be imported, the checkout that this file lies in is installed.
"""

import importlib
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
EXIT_FAILED, EXIT_ERROR = 1, 2


@dataclass
class TestSettings:
    """What the section `test` holds; `config/colab.yaml` says what each is."""

    documents: int
    base: dict[str, Any]
    recipe: dict[str, Any]
    eval: list[str]


@dataclass
class ColabSettings:
    """What `config/colab.yaml` holds, which says what each is."""

    drive: Path
    drive_folder: str
    runs: Path
    results: Path
    recipe: str
    train: list[str]
    eval: list[str]
    test: TestSettings

    @property
    def is_on_drive(self) -> bool:
        """Whether Google Drive is mounted."""
        return self.drive.is_dir()

    @property
    def train_words(self) -> list[str]:
        """What differs from the recipe, as words of `senri train`."""
        folder = self.drive / self.drive_folder if self.is_on_drive else self.runs
        return [_word("experiment.out", folder), *self.train]

    @property
    def results_folder(self) -> Path:
        """Where the evaluation goes."""
        return self.drive / self.drive_folder / self.results if self.is_on_drive else self.results


def train(settings: ColabSettings) -> int:
    """Train by the recipe; a run that stopped goes on. Return the exit code of `senri train`."""
    from senri.cli import main

    if not settings.is_on_drive:
        print(
            f"Google Drive is not mounted at {settings.drive}, so the run lies in {settings.runs} and goes with the "
            f"machine."
        )
    return main(["train", "--config", settings.recipe, *settings.train_words])


def evaluate(settings: ColabSettings) -> int:
    """Measure the trained model. Return the exit code of `senri eval suite`.

    Raises:
        SenriError: there is no trained model yet.
    """
    from senri.cli import main
    from senri.errors import SenriError
    from senri.training import ConfigManager

    manager = ConfigManager(settings.recipe, settings.train_words)
    model = manager.run_folder / "model"
    if not model.is_dir():
        raise SenriError(f"there is no trained model at {model}: run `python scripts/colab.py train` to its end first.")
    words = ["--model", str(model), "--name", str(manager.experiment.name), "--out", str(settings.results_folder)]
    return main(["eval", "suite", *words, *settings.eval])


def test(settings: ColabSettings) -> int:
    """Train and measure a tiny model in a temporary folder; say that all is well, or what is not."""
    _show_machine()
    with tempfile.TemporaryDirectory() as folder:
        try:
            problems = _try_out(settings.test, Path(folder))
        except Exception as error:  # whatever a broken installation raises is what is looked for
            traceback.print_exc()
            problems = [f"{type(error).__name__}: {error}"]
    for problem in problems:
        print(f"not well: {problem}")
    if not problems:
        print("all is well: a tiny model was converted, trained, saved, loaded and measured.")
    return EXIT_FAILED if problems else 0


WORDS: dict[str, Callable[[ColabSettings], int]] = {"train": train, "eval": evaluate, "test": test}


def run(words: Sequence[str]) -> int:
    """Do what one word says and return the exit code: 0, 1 where `test` found something, 2 after an error."""
    if len(words) != 1 or words[0] not in WORDS:
        given = f"not {' '.join(words)!r}" if words else "but none was given"
        return _error(f"colab.py takes one word, train, eval or test, {given}.")
    if importlib.util.find_spec("senri") is None and not _install():
        return _error(f"Senri could not be installed from {CHECKOUT}: see what pip says above.")
    from senri.errors import SenriError
    from senri.settings import load_settings

    try:
        return WORDS[words[0]](load_settings(ColabSettings, "colab"))
    except SenriError as error:
        return _error(str(error))


def _install() -> bool:
    """Install this checkout, and let this process see it."""
    print(f"Senri is not installed: installing {CHECKOUT} with pip ...", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "-e", f"{CHECKOUT}[train,eval]"]
    if subprocess.run(command).returncode:
        return False
    sys.path.append(str(CHECKOUT / "src"))  # a running process does not look into new .pth files
    importlib.invalidate_caches()
    return importlib.util.find_spec("senri") is not None


def _show_machine() -> None:
    import torch
    import transformers

    import senri

    has_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if has_gpu else "none (in Colab: Runtime, Change runtime type)"
    print(
        f"Python {sys.version.split()[0]}, Senri {senri.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; GPU: {device}"
    )


def _try_out(settings: TestSettings, folder: Path) -> list[str]:
    """Train and measure a tiny model; return what is not as it should be."""
    import yaml

    from senri.cli import main

    _write_documents(folder / "texts", settings.documents)
    _write_base(folder / "base", settings.base)
    recipe, results = folder / "tiny.yaml", folder / "results"
    recipe.write_text(yaml.safe_dump(settings.recipe), encoding="utf-8")
    places = {
        "model.base_model_name": folder / "base",
        "model.calibration_text": folder / "texts",
        "experiment.out": folder / "runs",
        "experiment.data.train": folder / "texts",
        "experiment.data.cache": folder / "tokens",
    }
    if main(["train", "--config", str(recipe), *(_word(key, place) for key, place in places.items())]):
        return ["training stopped with an error, which stands above"]
    run_folder = folder / "runs" / recipe.stem
    problems = _of_training(run_folder)
    model = str(run_folder / "model")
    texts = [_word(f"{part}.text", folder / "texts") for part in ("perplexity", "bytes", "memory")]
    if main(["eval", "suite", "--model", model, "--name", "tiny", "--out", str(results), *texts, *settings.eval]):
        problems.append("the evaluation stopped with an error, which stands above")
    return problems + _of_evaluation(results)


def _write_documents(folder: Path, count: int) -> None:
    from pydoc_data.topics import topics

    folder.mkdir()
    for name in sorted(topics, key=lambda name: len(topics[name]), reverse=True)[:count]:
        (folder / f"{name}.txt").write_text(topics[name], encoding="utf-8")


def _write_base(folder: Path, sizes: dict[str, Any]) -> None:
    """Write a Llama with random weights and a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet | {"<eos>": len(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _of_training(folder: Path) -> list[str]:
    """Return what is wrong with a run: numbers that are not finite, or nothing learnt."""
    found = json.loads((folder / "measures.json").read_text(encoding="utf-8"))["perplexities"]
    before, after = found["before training"], found["after full"]
    if not all(map(math.isfinite, found.values())):
        return [f"perplexities are not finite: {found}"]
    return [] if after < before else [f"training did not help: perplexity {after:.1f} after it, {before:.1f} before"]


def _of_evaluation(results: Path) -> list[str]:
    """Return the warnings of all measurements, and whether the report is missing."""
    problems = []
    for path in sorted(results.glob("*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        problems += [f"{result['part']}: {warning}" for warning in result["warnings"]]
    return problems if (results / "report.html").is_file() else [*problems, "the evaluation left no report"]


def _word(key: str, value: Path) -> str:
    return f"{key}={json.dumps(str(value))}"


def _error(sentence: str) -> int:
    print(f"colab: error: {sentence}", file=sys.stderr)
    return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
