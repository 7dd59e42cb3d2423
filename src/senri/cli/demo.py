"""`senri demo`: everything once, on a real model and a real text, with a report at the end."""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from senri.cli.opening import open_model, quieten
from senri.cli.tables import show_table
from senri.errors import SenriError
from senri.settings import load_settings, save_resolved

if TYPE_CHECKING:
    from senri.conversion import Preset
    from senri.data import TokenStream


@dataclass
class DemoSettings:
    """What `config/demo.yaml` holds; the file says what each is.

    Raises:
        SenriError: a number that is too small.
    """

    preset: str
    text: str | None
    facts: str | None
    answer_tokens: int
    tokens: int | Literal["all"]
    held_out_tokens: int
    context_tokens: int
    continue_tokens: int
    chunk_size: int
    block_characters: int
    save_every_seconds: float
    seed: int

    def __post_init__(self) -> None:
        for name, least in (
            ("tokens", 2),
            ("held_out_tokens", 2),
            ("context_tokens", 1),
            ("continue_tokens", 1),
            ("answer_tokens", 0),
            ("chunk_size", 1),
            ("block_characters", 1),
        ):
            value = getattr(self, name)
            if value != "all" and value < least:
                raise SenriError(f"{name} is {value}, but it must be at least {least}.")
        if self.save_every_seconds <= 0:
            raise SenriError(f"save_every_seconds is {self.save_every_seconds}, but it must be above 0.")


def demo(
    *overrides: str,
    out: Path = Path("demo"),
    text: Path | None = None,
    tokens: int | Literal["all"] | None = None,
    facts: str | None = None,
    config: Path | None = None,
) -> None:
    """Convert a model, hide facts in a long text, read it, ask, go on in a second process, and write a report.

    Args:
        overrides: settings such as preset=smollm_infini.
        out: folder for the model, the session and the report.
        text: a text file or a folder of them; the Python language reference if not given.
        tokens: of the text, or all.
        facts: a YAML file of facts to hide and ask for, or - to type them; Senri's own if not given.
        config: a YAML file of settings instead of config/demo.yaml.
    """
    words = [*overrides]
    words += [f"tokens={tokens}"] if tokens is not None else []
    words += [f"text={json.dumps(str(text))}"] if text is not None else []
    words += [f"facts={json.dumps(facts)}"] if facts is not None else []
    settings = load_settings(DemoSettings, config or "demo", words)
    quieten()
    import torch

    from senri.cli.demo_facts import open_facts
    from senri.cli.demo_measures import measure
    from senri.cli.demo_report import facts_found, facts_table, write_demo_report
    from senri.data import TokenStream, open_document
    from senri.evaluation.figures import human_bytes
    from senri.evaluation.files import make_folder

    torch.manual_seed(settings.seed)
    document = open_document(settings.text)
    to_hide = open_facts(settings.facts)
    make_folder(out)
    save_resolved(settings, out / "demo.yaml")
    preset = _converted(settings.preset, out / "model")
    model, tokenizer = open_model(out / "model")
    stream = TokenStream(document, tokenizer, settings.block_characters)
    length = _length_to_read(stream, settings)
    findings = measure(model, tokenizer, stream, length, to_hide, settings, out, preset.base)
    command = ["senri", "demo", *_words_of_command_line(words, out, config)]
    page = write_demo_report(out, document, preset, model, settings, findings, command)
    last = findings.reading.records[-1]
    carried = human_bytes(last.state_bytes + last.window_bytes)
    show_table(Console(), facts_table(findings))
    print(f"facts found again: {facts_found(findings)}.")
    print(f"carried after {last.tokens:,} tokens: {carried}, {human_bytes(last.state_bytes)} of it memory.")
    print(f"report, with a heat map of the facts (facts.png): {page}")


def _words_of_command_line(words: list[str], out: Path, config: Path | None) -> list[str]:
    return [*words, "--out", str(out), *(["--config", str(config)] if config else [])]


def _converted(preset: str, folder: Path) -> "Preset":
    """Convert the preset's base unless `folder` holds exactly that, and return the preset."""
    from senri import __version__
    from senri.conversion import convert, load_preset

    wanted = load_preset(preset)
    if (folder / "conversion.json").is_file() and (folder / "preset.yaml").is_file():
        try:
            record = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
            same = record["senri_version"] == __version__ and load_preset(folder / "preset.yaml") == wanted
        except (ValueError, KeyError, SenriError):
            same = False
        if same:
            print(f"{folder} is converted already.")
            return wanted
    print(f"converting {wanted.base} with the preset {preset} ...", flush=True)
    result = convert(None, preset, folder)
    created, kept = result.table.total("created"), result.table.total("kept", "converted")
    print(f"{kept:,} numbers taken over, {created:,} created, written to {folder}.")
    return wanted


def _length_to_read(stream: "TokenStream", settings: DemoSettings) -> int:
    """Return how many tokens are read, so that a held-out piece remains after them.

    Raises:
        SenriError: the text is too short.
    """
    kept_back = max(settings.held_out_tokens, settings.continue_tokens)
    limit = None if settings.tokens == "all" else settings.tokens + kept_back
    available = sum(1 for _ in islice(stream, limit)) - kept_back
    if available < settings.context_tokens:
        needed = settings.context_tokens + kept_back
        raise SenriError(
            f"text {stream.document.name!r} has {available + kept_back} tokens, but the demo needs {needed}: name a "
            f"longer text, or make held_out_tokens and context_tokens smaller."
        )
    return available
