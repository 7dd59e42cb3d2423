"""Held-out text: how well a model predicts it, read as a stream, and how much each memory takes part."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from senri.data.corpus import Corpus
from senri.data.tokens import blocks
from senri.evaluation.perplexity import Perplexity, streaming_perplexity
from senri.evaluation.reader import open_reader
from senri.models import SenriForCausalLM, Session
from senri.training.config import HeldOutConfig
from senri.training.evaluating import evaluating


def held_out_perplexity(
    model: Any,
    documents: Sequence[Tensor],
    chunk_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Read each document as a stream with a fresh state.

    Args:
        model: a Senri model, or any other, which then keeps the keys and values of all that it read.
        documents: token ids `[1, seq]`.
        chunk_size: tokens of one forward pass.
        on_progress: told how many more tokens were scored.
    """
    whole = Perplexity()
    with evaluating(model):
        for ids in documents:
            found = streaming_perplexity(open_reader(model), ids.to(model.device), chunk_size)
            whole.tokens += found.tokens
            whole.nats += found.nats
            whole.seconds += found.seconds
            if on_progress is not None:
                on_progress(found.tokens)
    return whole


def document_tokens(corpus: Corpus, tokenizer: Any, config: HeldOutConfig, block_characters: int) -> list[Tensor]:
    """Return the first tokens of the first documents of a corpus, each `[1, seq]`."""
    found: list[Tensor] = []
    for _, pieces in corpus.texts():
        ids: list[int] = []
        for block in blocks(pieces, block_characters):
            ids += tokenizer(block, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) >= config.tokens:
                break
        if len(ids) > 1:
            found.append(torch.tensor([ids[: config.tokens]]))
        if len(found) == config.documents:
            break
    return found


@torch.no_grad()
def memory_use(model: SenriForCausalLM, ids: Tensor, chunk_size: int) -> dict[int, dict[str, float]]:
    """Return, by layer, how much its memory takes part after reading a text.

    `gate` is the mean share of the memory where a gate mixes it; `norm` is the root of the mean square of M's numbers.

    Args:
        model: a Senri model.
        ids: `[1, seq]`.
        chunk_size: tokens of one forward pass.
    """
    session = Session(model)
    for begin in range(0, ids.shape[1], chunk_size):
        session.read(ids[:, begin : begin + chunk_size].to(model.device))
    found: dict[int, dict[str, float]] = {}
    for index, layer in session.memory_layers.items():
        state: Mapping[str, Tensor] = layer.memory_state or {}
        mixer: Any = model.model.layers[index].self_attn
        found[index] = {}
        if hasattr(mixer, "memory_gate"):
            found[index]["gate"] = float(torch.sigmoid(mixer.memory_gate.weight.float()).mean())
        if "M" in state:
            found[index]["norm"] = float(state["M"].float().square().mean().sqrt())
    return found
