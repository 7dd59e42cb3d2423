"""`senri demo`: everything once, on a real model and a real text, with a report at the end."""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from senri.cli.interruption import Stopped
from senri.cli.opening import open_model, quieten
from senri.cli.reading import Reading, read_stream
from senri.errors import SenriError
from senri.settings import load_settings, save_resolved

if TYPE_CHECKING:
    from torch import Tensor

    from senri.data import TokenStream
    from senri.evaluation import Perplexity
    from senri.models import SenriForCausalLM, Session

BASE = "base, full attention"


@dataclass
class DemoSettings:
    """What `config/demo.yaml` holds; the file says what each is.

    Raises:
        SenriError: a number that is too small.
    """

    preset: str
    text: str | None
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
            ("chunk_size", 1),
            ("block_characters", 1),
        ):
            value = getattr(self, name)
            if value != "all" and value < least:
                raise SenriError(f"{name} is {value}, but it must be at least {least}.")
        if self.save_every_seconds <= 0:
            raise SenriError(f"save_every_seconds is {self.save_every_seconds}, but it must be above 0.")


@dataclass(frozen=True)
class Findings:
    """What the demo measured.

    Args:
        reading: record by record.
        perplexities: by name of the model.
        continue_difference: largest |difference| of logits between the two processes.
        session_bytes: length of the session file.
        cache_bytes_per_token: of the base's KV cache.
    """

    reading: Reading
    perplexities: "dict[str, Perplexity]"
    continue_difference: float
    session_bytes: int
    cache_bytes_per_token: int


def demo(
    *overrides: str,
    out: Path = Path("demo"),
    text: Path | None = None,
    tokens: int | Literal["all"] | None = None,
    config: Path | None = None,
) -> None:
    """Convert a model, read a long text, go on in a second process, and write a report.

    Args:
        overrides: settings such as preset=smollm_infini.
        out: folder for the model, the session and the report.
        text: a text file or a folder of them; the Python language reference if not given.
        tokens: of the text, or all.
        config: a YAML file of settings instead of config/demo.yaml.
    """
    words = [*overrides]
    words += [f"tokens={tokens}"] if tokens is not None else []
    words += [f"text={json.dumps(str(text))}"] if text is not None else []
    settings = load_settings(DemoSettings, config or "demo", words)
    quieten()
    import torch

    from senri.cli.demo_report import write_demo_report
    from senri.data import TokenStream, open_document
    from senri.evaluation.files import make_folder

    torch.manual_seed(settings.seed)
    document = open_document(settings.text)
    make_folder(out)
    save_resolved(settings, out / "demo.yaml")
    base = _converted(settings.preset, out / "model")
    model, tokenizer = open_model(out / "model")
    stream = TokenStream(document, tokenizer, settings.block_characters)
    length = _length_to_read(stream, settings)
    findings = _measured(model, tokenizer, stream, length, settings, out, base)
    command = ["senri", "demo", *_words_of_command_line(words, out, config)]
    page = write_demo_report(out, document, base, model, settings, findings, command)
    print(f"report: {page}")


def _words_of_command_line(words: list[str], out: Path, config: Path | None) -> list[str]:
    return [*words, "--out", str(out), *(["--config", str(config)] if config else [])]


def _converted(preset: str, folder: Path) -> str:
    """Convert the preset's base unless `folder` holds exactly that, and return the base's name."""
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
            return wanted.base
    print(f"converting {wanted.base} with the preset {preset} ...", flush=True)
    result = convert(None, preset, folder)
    created, kept = result.table.total("created"), result.table.total("kept", "converted")
    print(f"{kept:,} numbers taken over, {created:,} created, written to {folder}.")
    return wanted.base


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


def _measured(
    model: "SenriForCausalLM",
    tokenizer: Any,
    stream: "TokenStream",
    length: int,
    settings: DemoSettings,
    out: Path,
    base: str,
) -> Findings:
    import torch

    from senri.cli.continue_session import continued_elsewhere
    from senri.evaluation import kv_cache_bytes
    from senri.models import Session, SourceProgress

    path = out / "session.senri"
    live = Session(model)

    def save(position: int) -> None:
        live.source = SourceProgress(stream.document.name, stream.document.sha256, position)
        live.save(path)

    reading = read_stream(
        live,
        stream,
        start=0,
        stop=length,
        chunk_size=settings.chunk_size,
        save_every_seconds=settings.save_every_seconds,
        save=save,
    )
    if reading.stopped:
        raise Stopped(
            f"stopped after {reading.position:,} tokens, kept in {path}; the demo begins to read anew next time."
        )
    following = torch.tensor([list(islice(stream.skip(length), settings.continue_tokens))])
    print("continuing in a second process ...", flush=True)
    elsewhere = continued_elsewhere(out / "model", path, following)
    difference = float((live.fork().logits(following) - elsewhere).abs().max())
    print(f"largest difference of the logits: {difference:g}.")
    begin = length - settings.context_tokens
    piece = torch.tensor([list(islice(stream.skip(begin), settings.context_tokens + settings.held_out_tokens))])
    return Findings(
        reading=reading,
        perplexities=_perplexities(model, tokenizer, live, piece, settings, base),
        continue_difference=difference,
        session_bytes=path.stat().st_size,
        cache_bytes_per_token=kv_cache_bytes(model.config, 1, model.dtype),
    )


def _perplexities(
    model: "SenriForCausalLM", tokenizer: Any, live: "Session", ids: "Tensor", settings: DemoSettings, base: str
) -> "dict[str, Perplexity]":
    """Score the same tokens three times: those of the held-out piece but its first.

    Args:
        model: the converted model.
        tokenizer: its tokenizer.
        live: a session that has read up to the held-out piece.
        ids: context and held-out piece, `[1, seq]`.
        settings: of the demo.
        base: name of the base.
    """
    from senri.conversion import load_base, resolve_base
    from senri.evaluation import sliding_window_perplexity, streaming_perplexity
    from senri.evaluation.perplexity_part import WITH_MEMORY, WITHOUT_MEMORY, num_bytes
    from senri.models import Session

    print("perplexity with memory, without, and of the base ...", flush=True)
    context, piece = ids[:, : settings.context_tokens], ids[:, settings.context_tokens :]
    count = num_bytes(tokenizer, piece)
    with_memory = streaming_perplexity(live.fork(), piece, settings.chunk_size, num_bytes=count)
    with model.memory_disabled():
        alone = Session(model)
        for chunk in context.split(settings.chunk_size, dim=1):
            alone.read(chunk)
        without_memory = streaming_perplexity(alone, piece, settings.chunk_size, num_bytes=count)
    base_model = load_base(resolve_base(base))[0].eval()
    longest = getattr(base_model.config, "max_position_embeddings", None) or ids.shape[1]
    window = min(ids.shape[1], longest)
    full = sliding_window_perplexity(
        base_model, ids, window, window // 2, context=settings.context_tokens + 1, num_bytes=count
    )
    return {BASE: full, WITHOUT_MEMORY: without_memory, WITH_MEMORY: with_memory}
