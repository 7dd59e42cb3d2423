"""`senri eval <part>` and `senri eval suite`: measure a model, print the tables, and keep everything in a report."""

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senri.cli.interruption import Stopped
from senri.cli.parser import Command
from senri.cli.subject import open_subject
from senri.settings import load_settings

if TYPE_CHECKING:
    from senri.evaluation.evaluate import Evaluation

SUMMARIES = {
    "perplexity": "Measure perplexity of documents, by stream with memory and without, or by sliding window",
    "wikitext": "Measure WikiText-2 by page, as lm-eval does",
    "lambada": "Measure LAMBADA: the last word of a passage, as lm-eval's lambada_openai",
    "needle": "Hide needles in a haystack and ask for them, with controls",
    "recall": "Ask for what lies far behind the window: hundreds of samples, texts of any length",
    "ruler": "Run RULER's tasks at chosen lengths, through lm-eval",
    "babilong": "Scatter the facts of bAbI's questions over a book, and ask",
    "reversal": "Measure the reversal curse: pairs in the order that was taught, and in the other",
    "bytes": "Count the bytes of caches and memories, by formula and by measurement, against length",
    "memory": "Watch a memory while it reads: norms, ranks, write strength, gates, and the words it kept",
}
_OPTIONS = {
    "perplexity": ("text", "tokens"),
    "babilong": ("text",),
    "recall": ("text",),
    "bytes": ("text",),
    "memory": ("text", "tokens"),
}
_HELP = {
    "text": "a text file or a folder of them (text=...); the Python language reference if not given.",
    "tokens": "of the text, or all (tokens=...).",
}
_EXAMPLES = {
    "perplexity": "window=2048",
    "wikitext": "pages=10",
    "lambada": "samples=500",
    "needle": "lengths=[4096,131072]",
    "recall": "lengths=[32768]",
    "ruler": "lengths=[8192]",
    "babilong": "tasks=[qa1]",
    "reversal": "pairs=100",
    "bytes": "lengths=[4096]",
    "memory": "every=256",
}
_OF_ALL_PARTS = ("dtype", "device", "save_every_seconds")


def suite(
    *overrides: str,
    model: str,
    session: Path | None = None,
    name: str | None = None,
    out: Path = Path("results"),
    label: str = "",
    config: Path | None = None,
) -> None:
    """Measure a model in all the ways that the settings name under `suite`, and make one report.

    The same command goes on where it stopped.

    Args:
        overrides: settings such as needle.samples=5.
        model: a folder, a Hub id, or a GGUF file.
        session: a session file that every reading starts from.
        name: what the report calls the model; the folder's name if not given.
        out: folder of the report; runs of several models and settings may share it.
        label: tells runs of the same model apart.
        config: a YAML file of settings instead of config/evaluation.yaml.
    """
    _run(None, list(overrides), model, session, name, out, label, config)


def part_command(part: str) -> Command:
    """Return the command that measures one part; its settings are words without the part's name before them."""

    def command(*overrides: str, model: str, **options: Any) -> None:
        words = [_in_section(part, word) for word in overrides]
        for setting in _OPTIONS.get(part, ()):
            if (value := options.pop(setting, None)) is not None:
                words.append(f"{part}.{setting}={json.dumps(str(value)) if setting == 'text' else value}")
        _run(part, words, model, **options)

    command.__doc__ = "\n".join(
        [
            f"{SUMMARIES[part]}.",
            "",
            "The same command goes on where it stopped.",
            "",
            "Args:",
            f"    overrides: settings of the section {part} such as {_EXAMPLES[part]}.",
            "    model: a folder, a Hub id, or a GGUF file.",
            "    session: a session file that every reading starts from.",
            "    name: what the report calls the model; the folder's name if not given.",
            "    out: folder of the report; runs of several models and settings may share it.",
            "    label: tells runs of the same part and model apart.",
            "    config: a YAML file of settings instead of config/evaluation.yaml.",
            *(f"    {setting}: {_HELP[setting]}" for setting in _OPTIONS.get(part, ())),
        ]
    )
    like = inspect.signature(suite)
    kept = list(like.parameters.values())
    hints = {parameter.name: parameter.annotation for parameter in kept}
    for setting in _OPTIONS.get(part, ()):
        hint = Path | None if setting == "text" else str | None
        kept.append(inspect.Parameter(setting, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint))
        hints[setting] = hint
    command.__signature__ = like.replace(parameters=kept)  # type: ignore[attr-defined]
    command.__annotations__ = hints
    return command


def _in_section(part: str, word: str) -> str:
    key = word.partition("=")[0].partition(".")[0].strip()
    return word if key in (*_OF_ALL_PARTS, part) else f"{part}.{word}"


def _run(
    part: str | None,
    words: list[str],
    model: str,
    session: Path | None,
    name: str | None,
    out: Path,
    label: str,
    config: Path | None,
) -> None:
    from senri.evaluation.evaluate import REPORT_FILE, evaluate
    from senri.evaluation.parts import PARTS
    from senri.evaluation.settings import EvaluationSettings

    settings = load_settings(EvaluationSettings, config or "evaluation", words)
    subject = open_subject(model, session, name, settings.dtype, settings.device)
    command = _typed(part, words, model, session, name, out, label, config)
    for chosen in settings.suite if part is None else [part]:
        if part is None and PARTS[chosen].needs_memory and not subject.is_senri:
            print(f"{chosen}: left out, {subject.name} has no memory of Senri's.")
            continue
        try:
            found = evaluate(
                subject,
                chosen,
                getattr(settings, chosen),
                out=out,
                label=label,
                command=command,
                save_every_seconds=settings.save_every_seconds,
            )
        except KeyboardInterrupt as stop:
            raise Stopped(f"stopped. What is finished is kept in {out}; the same command goes on from there.") from stop
        if _is_main():
            _show(found)
    if _is_main():
        print(f"report: {out / REPORT_FILE}")


def _typed(part: str | None, words: list[str], model: str, *options: Any) -> list[str]:
    """Return the command line that was typed, but for the order of its words."""
    flags = zip(("--session", "--name", "--out", "--label", "--config"), options, strict=True)
    given = [text for flag, value in flags if value for text in (flag, str(value))]
    if part is not None:
        words = [word.removeprefix(f"{part}.") for word in words]
    return ["senri", "eval", part or "suite", "--model", model, *given, *words]


def _is_main() -> bool:
    from senri.evaluation.processes import process_state

    return bool(process_state().is_main_process)


def _show(found: "Evaluation") -> None:
    """Print what was found: sentences, tables, warnings."""
    from rich.console import Console

    from senri.cli.tables import show_table

    console = Console()
    console.rule(found.part)
    for sentence in found.outcome.summary:
        console.print(sentence, markup=False)
    for content in found.outcome.tables:
        show_table(console, content)
    for warning in found.outcome.warnings:
        print(f"look again: {warning}")
    if found.folder is not None:
        print(f"written to {found.folder}.")
