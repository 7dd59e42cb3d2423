"""`senri eval perplexity`: how well a model predicts a text, with its memory and without."""

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from senri.cli.opening import model_type_of, open_model, open_tokenizer, quieten, readable
from senri.errors import SenriError
from senri.settings import load_settings, save_resolved

if TYPE_CHECKING:
    from torch import Tensor

    from senri.evaluation import Perplexity

COLUMNS = ("model", "perplexity", "bits per byte", "tokens", "tokens/s")
WITH_MEMORY, WITHOUT_MEMORY = "window + memory", "window alone"


@dataclass
class PerplexitySettings:
    """What `config/perplexity.yaml` holds; the file says what each is.

    Raises:
        SenriError: a number that is too small.
    """

    tokens: int | Literal["all"]
    window: int
    stride: int
    chunk_size: int
    block_characters: int

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("window", 2), ("stride", 1), ("chunk_size", 1), ("block_characters", 1)):
            value = getattr(self, name)
            if value != "all" and value < least:
                raise SenriError(f"{name} is {value}, but it must be at least {least}.")


def perplexity(
    *overrides: str,
    model: Path,
    text: Path | None = None,
    tokens: int | Literal["all"] | None = None,
    out: Path | None = None,
    config: Path | None = None,
) -> None:
    """Measure perplexity on a text: of a Senri model with memory and without, of any other model by sliding window.

    Args:
        overrides: settings such as window=2048.
        model: folder of a model.
        text: a text file or a folder of them; the Python language reference if not given.
        tokens: of the text, or all.
        out: folder for perplexity.json and the settings.
        config: a YAML file of settings instead of config/perplexity.yaml.
    """
    words = [*overrides, *([f"tokens={tokens}"] if tokens is not None else [])]
    settings = load_settings(PerplexitySettings, config or "perplexity", words)
    from senri.data import TokenStream, open_document

    document = open_document(text)
    if out is not None:
        from senri.evaluation.files import make_folder
        from senri.evaluation.report import write_json

        make_folder(out)
    measure = _measure_senri if model_type_of(model) == "senri" else _measure_other

    def token_ids(tokenizer: Any) -> "Tensor":
        import torch

        stream = TokenStream(document, tokenizer, settings.block_characters)
        return torch.tensor([list(islice(stream, None if settings.tokens == "all" else settings.tokens))])

    results = measure(model, settings, token_ids)
    print(f"{document.name}, sha256 {document.sha256[:12]}")
    show(results)
    if out is not None:
        save_resolved(settings, out / "perplexity.yaml")
        text_facts = {"name": document.name, "sha256": document.sha256}
        write_json(
            out / "perplexity.json", {"text": text_facts, "settings": asdict(settings), "results": plain(results)}
        )
        print(f"written to {out / 'perplexity.json'}.")


def _measure_senri(folder: Path, settings: PerplexitySettings, token_ids: Any) -> "dict[str, Perplexity]":
    from senri.evaluation import streaming_perplexity
    from senri.models import Session

    model, tokenizer = open_model(folder)
    ids = token_ids(tokenizer)
    chunks, count = ids.split(settings.chunk_size, dim=1), num_bytes(tokenizer, ids)
    results = {WITH_MEMORY: streaming_perplexity(Session(model), chunks, num_bytes=count)}
    with model.memory_disabled():
        results[WITHOUT_MEMORY] = streaming_perplexity(Session(model), chunks, num_bytes=count)
    return results


def _measure_other(folder: Path, settings: PerplexitySettings, token_ids: Any) -> "dict[str, Perplexity]":
    quieten()
    from transformers import AutoModelForCausalLM

    from senri.evaluation import sliding_window_perplexity

    tokenizer = open_tokenizer(folder)
    with readable(folder):
        model = AutoModelForCausalLM.from_pretrained(folder)
    ids = token_ids(tokenizer)
    count = num_bytes(tokenizer, ids)
    score = sliding_window_perplexity(model, ids, settings.window, settings.stride, num_bytes=count)
    return {f"sliding window of {settings.window:,}": score}


def num_bytes(tokenizer: Any, ids: "Tensor") -> int:
    """Return the UTF-8 length of the text of all tokens `[1, seq]` but the first."""
    text = tokenizer.decode(ids[0, 1:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return len(text.encode())


def rows(results: "dict[str, Perplexity]") -> list[list[str]]:
    """Return the results as rows of `COLUMNS`."""
    return [
        [
            name,
            f"{score.perplexity:.3f}",
            "" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}",
            f"{score.tokens:,}",
            f"{score.tokens / score.seconds:,.0f}",
        ]
        for name, score in results.items()
    ]


def show(results: "dict[str, Perplexity]") -> None:
    """Print the results as a table, and below it what looks wrong."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if not index else "right")
    for row in rows(results):
        table.add_row(*row)
    Console().print(table)
    for warning in warnings(results):
        print(f"look again: {warning}")


def warnings(results: "dict[str, Perplexity]") -> list[str]:
    """Return what looks wrong."""
    return [f"{name}: {score.warning}" for name, score in results.items() if score.warning]


def plain(results: "dict[str, Perplexity]") -> dict[str, Any]:
    """Return the results as plain data."""
    return {
        name: {"perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte, **asdict(score)}
        for name, score in results.items()
    }
