"""What the demo measures: the reading, the facts, the way through a file into a second process, and perplexity."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senri.cli.demo_facts import Asked, HiddenFact, StreamWithFacts, ask_facts, read_last
from senri.cli.interruption import Stopped
from senri.cli.reading import Reading, read_stream

if TYPE_CHECKING:
    from torch import Tensor

    from senri.cli.demo import DemoSettings
    from senri.data import TokenStream
    from senri.evaluation import Perplexity
    from senri.models import SenriForCausalLM, Session

BASE = "base, full attention"


@dataclass(frozen=True)
class Findings:
    """What the demo measured.

    Args:
        reading: record by record.
        perplexities: by name of the model.
        facts: what was hidden.
        places: the tokens of the text in front of which they were hidden.
        asked: what every reader said to every question.
        continue_difference: largest |difference| of logits between the two processes.
        session_bytes: length of the session file.
        cache_bytes_per_token: of the base's KV cache.
    """

    reading: Reading
    perplexities: "dict[str, Perplexity]"
    facts: list[HiddenFact]
    places: list[int]
    asked: list[Asked]
    continue_difference: float
    session_bytes: int
    cache_bytes_per_token: int


def measure(
    model: "SenriForCausalLM",
    tokenizer: Any,
    text: "TokenStream",
    length: int,
    facts: list[HiddenFact],
    settings: "DemoSettings",
    out: Path,
    base: str,
) -> Findings:
    """Hide, read, ask, continue elsewhere, and score the piece after what was read.

    Args:
        model: the converted model.
        tokenizer: its tokenizer.
        text: what is read.
        length: tokens of it, without what is hidden.
        facts: what is hidden.
        settings: of the demo.
        out: folder with the model, for the session.
        base: name of the base.

    Raises:
        Stopped: someone asked to stop.
    """
    import torch

    from senri.cli.continue_session import continued_elsewhere
    from senri.conversion import load_base, resolve_base
    from senri.evaluation import kv_cache_bytes
    from senri.models import Session, SourceProgress

    base_model = load_base(resolve_base(base))[0].eval()
    in_view = max(model.config.sliding_window or 0, _context(base_model, settings))
    # In front of what the base can see at once, or where the text is shorter than that, of what the window can.
    last = length - in_view if length > in_view else max(length - (model.config.sliding_window or 0), 0)
    stream = StreamWithFacts(text, facts, last, settings.seed)
    length += stream.hidden_tokens
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
    asked = _asked(model, base_model, tokenizer, live, stream, length, facts, settings)
    begin = length - settings.context_tokens
    piece = torch.tensor([list(islice(stream.skip(begin), settings.context_tokens + settings.held_out_tokens))])
    return Findings(
        reading=reading,
        perplexities=_perplexities(model, base_model, tokenizer, live, piece, settings),
        facts=facts,
        places=stream.places,
        asked=asked,
        continue_difference=difference,
        session_bytes=path.stat().st_size,
        cache_bytes_per_token=kv_cache_bytes(model.config, 1, model.dtype),
    )


def _context(base_model: Any, settings: "DemoSettings") -> int:
    """Return how many tokens the base sees at once."""
    longest = getattr(base_model.config, "max_position_embeddings", None)
    return int(longest or settings.context_tokens + settings.held_out_tokens)


def _asked(
    model: "SenriForCausalLM",
    base_model: Any,
    tokenizer: Any,
    live: "Session",
    stream: StreamWithFacts,
    length: int,
    facts: list[HiddenFact],
    settings: "DemoSettings",
) -> list[Asked]:
    """Ask for every fact: the session that read the text, the model with its memory off, and the base."""
    from senri.evaluation.reader import CacheReader
    from senri.models import Session

    print("asking for the facts, with memory, without, and the base ...", flush=True)
    more = settings.answer_tokens
    found = ask_facts("with memory", live, tokenizer, facts, more)
    context = min(_context(base_model, settings) - settings.held_out_tokens, length)
    last = [*islice(stream.skip(length - context), context)]
    with model.memory_disabled():
        alone = Session(model)
        read_last(alone, last, settings.chunk_size)
        found += ask_facts("memory off", alone, tokenizer, facts, more)
    whole = CacheReader(base_model)
    read_last(whole, last, settings.chunk_size)
    return found + ask_facts(f"base, last {context:,} tokens", whole, tokenizer, facts, more)


def _perplexities(
    model: "SenriForCausalLM",
    base_model: Any,
    tokenizer: Any,
    live: "Session",
    ids: "Tensor",
    settings: "DemoSettings",
) -> "dict[str, Perplexity]":
    """Score the same tokens three times: those of the held-out piece but its first.

    Args:
        model: the converted model.
        base_model: its base.
        tokenizer: of both.
        live: a session that has read up to the held-out piece.
        ids: context and held-out piece, `[1, seq]`.
        settings: of the demo.
    """
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
    window = min(ids.shape[1], _context(base_model, settings))
    full = sliding_window_perplexity(
        base_model, ids, window, window // 2, context=settings.context_tokens + 1, num_bytes=count
    )
    return {BASE: full, WITHOUT_MEMORY: without_memory, WITH_MEMORY: with_memory}
