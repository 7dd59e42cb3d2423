"""The demo's findings as a report."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from senri.evaluation.charts import heat_map_figure
from senri.evaluation.figures import human_bytes, reading_figure
from senri.evaluation.health import warning_of
from senri.evaluation.outcome import Picture, Table
from senri.evaluation.perplexity_part import COLUMNS, WITH_MEMORY, WITHOUT_MEMORY, plain, rows
from senri.evaluation.report import Report, write_report

if TYPE_CHECKING:
    from senri.cli.demo import DemoSettings
    from senri.cli.demo_measures import Findings
    from senri.conversion import Preset
    from senri.data import Document
    from senri.models import SenriForCausalLM


def write_demo_report(
    out: Path,
    document: "Document",
    preset: "Preset",
    model: "SenriForCausalLM",
    settings: "DemoSettings",
    findings: "Findings",
    command: list[str],
) -> Path:
    """Write report.html, report.json and the pictures, and return the page's path."""
    records = findings.reading.records
    last = records[-1]
    carried = last.state_bytes + last.window_bytes
    cache = findings.cache_bytes_per_token * last.tokens
    mean = sum(record.chunk_tokens for record in records) / sum(record.seconds for record in records)
    scores = findings.perplexities
    same = (
        "the logits were equal to the last bit"
        if findings.continue_difference == 0
        else f"the logits differed by at most {findings.continue_difference:.2e}"
    )
    summary = [
        f"{preset.base} read {last.tokens:,} tokens of {document.name} and carries {human_bytes(carried)}: "
        f"{human_bytes(last.state_bytes)} of memory and {human_bytes(last.window_bytes)} of window.",
        f"Facts found again: {facts_found(findings)}.",
        f"Full attention would have kept {human_bytes(cache)} by then, {cache / carried:.1f} times as much, and more "
        f"with every further token.",
        f"The session was saved ({human_bytes(findings.session_bytes)}), loaded by a second process and continued: "
        f"{same}.",
        f"Perplexity on the next {settings.held_out_tokens:,} tokens: {_compared(scores)}.",
    ]
    figure = reading_figure(records, lambda tokens: findings.cache_bytes_per_token * tokens)
    caption = (
        f"Left: bytes carried against tokens read, beside the keys and values that full attention keeps. "
        f"Right: speed, {mean:,.0f} tokens/s on average."
    )
    report = Report(
        title=f"Senri: {last.tokens:,} tokens in {human_bytes(carried)}",
        summary=summary,
        command=command,
        settings=asdict(settings),
        results=_results(document, preset, model, findings),
        warnings=[f"{name}: {text}" for name, score in scores.items() if (text := warning_of(score.perplexity))],
        tables=[facts_table(findings), _perplexity_table(scores, settings, preset), _bytes_table(findings)],
        pictures=[_facts_picture(findings, last.tokens), Picture("reading", figure, caption)],
    )
    return write_report(out, report)


def facts_found(findings: "Findings") -> str:
    """Say how many facts each reader found."""
    names = list(dict.fromkeys(one.reader for one in findings.asked))
    right = {name: sum(one.is_right for one in findings.asked if one.reader == name) for name in names}
    return ", ".join(f"{name} {count} of {len(findings.facts)}" for name, count in right.items())


def facts_table(findings: "Findings") -> Table:
    """Return questions, right answers, and what each reader said."""
    names = list(dict.fromkeys(one.reader for one in findings.asked))
    said = {(one.reader, one.fact): one for one in findings.asked}
    rows = []
    for number, fact in enumerate(findings.facts):
        answers = [said[name, number] for name in names]
        rows.append(
            [
                f"{findings.places[number]:,}",
                fact.question,
                fact.answer,
                *(f"{'yes' if one.is_right else 'no'}: {one.said}" for one in answers),
            ]
        )
    note = (
        "Each fact stands once in the text, before the token named first, further back than base and window reach. "
        "The model with its memory off has read the same last tokens as the base."
    )
    return Table("Facts hidden in the text", ("hidden at", "question", "answer", *names), rows, note)


def _facts_picture(findings: "Findings", tokens: int) -> Picture:
    names = list(dict.fromkeys(one.reader for one in findings.asked))
    order = sorted(range(len(findings.facts)), key=lambda number: findings.places[number])
    share = {(one.reader, one.fact): one.tokens_right for one in findings.asked}
    figure = heat_map_figure(
        {"facts": np.array([[share[name, number] for number in order] for name in names])},
        [f"{100 * findings.places[number] / tokens:.0f}%" for number in order],
        names,
        "where the fact lies in the text",
        "",
        "answer tokens right",
    )
    caption = "Share of each answer's tokens that are the likeliest given those before them, by fact and reader."
    return Picture("facts", figure, caption)


def _compared(scores: dict[str, Any]) -> str:
    return ", ".join(f"{name} {score.perplexity:.2f}" for name, score in scores.items())


def _perplexity_table(scores: dict[str, Any], settings: "DemoSettings", preset: "Preset") -> Table:
    trained = (
        "No training: this is the model as conversion leaves it."
        if preset.trained is None
        else f"The base is as it was; its memory was trained ({preset.trained})."
    )
    note = (
        f"The same {next(iter(scores.values())).tokens:,} tokens each time, right after what was read. The base and "
        f"the window alone see the {settings.context_tokens:,} tokens before them as well; {WITH_MEMORY} has read all "
        f"of the text before them. {WITHOUT_MEMORY.capitalize()} is the same model with its memory switched off. "
        f"{trained}"
    )
    return Table("Perplexity (lower is better)", COLUMNS, rows(scores), note)


def _bytes_table(findings: "Findings") -> Table:
    records = findings.reading.records
    shown = {len(records) - 1}
    # Doublings from the first chunk on tell growth from its absence in a few rows.
    index = 0
    while index < len(records):
        shown.add(index)
        index = 2 * index + 1
    return Table(
        "What was carried",
        ("tokens read", "memory", "window", "KV cache of full attention", "tokens/s", "process memory"),
        [
            [
                f"{record.tokens:,}",
                human_bytes(record.state_bytes),
                human_bytes(record.window_bytes),
                human_bytes(findings.cache_bytes_per_token * record.tokens),
                f"{record.tokens_per_second:,.0f}",
                human_bytes(record.process_bytes),
            ]
            for record in (records[one] for one in sorted(shown))
        ],
        "1 MB is 10^6 bytes. The KV cache is computed: 2 x layers x key/value heads x head size x tokens x bytes.",
    )


def _results(document: "Document", preset: "Preset", model: "SenriForCausalLM", findings: "Findings") -> dict[str, Any]:
    return {
        "base": preset.base,
        "trained": preset.trained,
        "text": {"name": document.name, "sha256": document.sha256, "characters": document.characters},
        "layer_types": list(model.config.layer_types or []),
        "sliding_window": model.config.sliding_window,
        "dtype": str(model.dtype).removeprefix("torch."),
        "continue_max_difference": findings.continue_difference,
        "session_bytes": findings.session_bytes,
        "cache_bytes_per_token": findings.cache_bytes_per_token,
        "perplexity": plain(findings.perplexities),
        "facts": [
            {**asdict(fact), "hidden_at": place} for fact, place in zip(findings.facts, findings.places, strict=True)
        ],
        "asked": [asdict(one) for one in findings.asked],
        "reading": [asdict(record) for record in findings.reading.records],
    }
