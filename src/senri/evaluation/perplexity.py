"""Perplexity of a text in two ways that score the same tokens: overlapping windows, and one stream with its state.

Both count every token after the first exactly once, in nats, summed in float64.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senri.errors import SenriError

LEAK_BELOW = 5.0
"""Text that a small language model has not learnt by heart stays above this; a target that leaks does not."""

UNTRAINED_ABOVE = 1000.0
"""A trained model does not get above this on text of its language; mismatched weights or tokens do."""

# Positions whose log-softmax is made at once: 256 x 49,152 float32 values are 50 MB.
_LOSS_POSITIONS = 256


class StreamingSession(Protocol):
    """What is needed of a session; `senri.models.Session` has it."""

    def logits(self, input_ids: Tensor) -> Tensor:
        """Read `[1, seq]` tokens and return the logits `[1, seq, vocabulary]` of all of them."""
        ...


@dataclass(frozen=True)
class CurvePoint:
    """The running perplexity after so many scored tokens."""

    tokens: int
    perplexity: float


@dataclass
class Perplexity:
    """How well a text was predicted.

    Args:
        tokens: tokens scored.
        nats: sum of their negative log-likelihoods.
        seconds: time of the forward passes and losses.
        bytes: UTF-8 length of the scored text; None when it is not known.
        curve: the running perplexity after each window or chunk.
    """

    tokens: int = 0
    nats: float = 0.0
    seconds: float = 0.0
    bytes: int | None = None
    curve: list[CurvePoint] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        """Return exp of the mean negative log-likelihood of a token; infinite where it overflows."""
        try:
            return math.exp(self.nats / self.tokens)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Return bits for one byte of text, comparable between tokenizers; None without the byte count."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None

    @property
    def warning(self) -> str | None:
        """Return what a suspicious value may mean, or None for a plausible one."""
        value = self.perplexity
        if math.isnan(value):
            return "perplexity is not a number: the weights or the state hold values that are not finite."
        if value < LEAK_BELOW:
            return f"perplexity {value:.2f} is below {LEAK_BELOW:g}: a target may leak, or a mask may be broken."
        if value > UNTRAINED_ABOVE:
            return f"perplexity {value:.0f} is above {UNTRAINED_ABOVE:g}: the weights look untrained."
        return None

    def _add(self, logits: Tensor, targets: Tensor) -> None:
        """Count `logits` `[seq, vocabulary]` against `targets` `[seq]`."""
        if not targets.numel():
            return
        for start in range(0, targets.numel(), _LOSS_POSITIONS):
            piece = slice(start, start + _LOSS_POSITIONS)
            losses = F.cross_entropy(logits[piece].float(), targets[piece], reduction="none")
            self.nats += float(losses.double().sum())
        self.tokens += targets.numel()
        self.curve.append(CurvePoint(self.tokens, self.perplexity))


@torch.no_grad()
def sliding_window_perplexity(
    model: nn.Module, ids: Tensor, window: int, stride: int, *, context: int = 1, num_bytes: int | None = None
) -> Perplexity:
    """Score a text in overlapping windows: what the window before has scored is context and is not scored again.

    Each token but those of the first window has at least `window - stride` tokens of context.

    Args:
        model: any causal language model of transformers.
        ids: the text, `[1, seq]` or `[seq]`.
        window: tokens in one forward pass.
        stride: tokens that each further window scores; below `window`.
        context: tokens at the start that are read and not scored.
        num_bytes: UTF-8 length of the scored tokens.

    Raises:
        SenriError: no token to score, a size below 1, or a stride that is not below the window.

    Source: the fixed-length strategy of https://huggingface.co/docs/transformers/perplexity.
    """
    ids = ids.reshape(1, -1)
    length = ids.shape[1]
    if context < 1:
        raise SenriError(f"context is {context}, but it must be at least 1: the first token has nothing before it.")
    if not 1 <= stride < window:
        # The last token of a window predicts one that must be inside a window as well.
        raise SenriError(f"stride is {stride}, but it must be at least 1 and below the window of {window}.")
    result = Perplexity(bytes=num_bytes)
    began = time.perf_counter()
    scored_to = context
    for start in range(0, length, stride):
        end = min(start + window, length)
        fresh = end - scored_to
        if fresh > 0:
            # One more position than fresh tokens: the last one predicts what the next window scores.
            out = model(input_ids=ids[:, start:end], use_cache=False, logits_to_keep=fresh + 1)
            result._add(out.logits[0, -fresh - 1 : -1], ids[0, scored_to:end].to(out.logits.device))
            scored_to = end
        if end == length:
            break
    result.seconds = time.perf_counter() - began
    return _with_tokens(result)


@torch.no_grad()
def streaming_perplexity(
    session: StreamingSession, chunks: Iterable[Tensor], *, num_bytes: int | None = None
) -> Perplexity:
    """Score a text as one stream: each chunk is read once, by a session that carries its state on.

    The first token of a chunk is scored by the last logits of the chunk before; the first of all is not scored.

    Args:
        session: what reads; it is left at the end of the text.
        chunks: the text in pieces `[1, seq]`.
        num_bytes: UTF-8 length of the scored tokens.

    Raises:
        SenriError: no token to score.
    """
    result = Perplexity(bytes=num_bytes)
    began = time.perf_counter()
    last: Tensor | None = None
    for chunk in chunks:
        logits = session.logits(chunk)[0]
        targets = chunk[0].to(logits.device)
        if last is None:
            result._add(logits[:-1], targets[1:])
        else:
            result._add(torch.cat([last, logits[:-1]]), targets)
        last = logits[-1:].clone()
    result.seconds = time.perf_counter() - began
    return _with_tokens(result)


def _with_tokens(result: Perplexity) -> Perplexity:
    if not result.tokens:
        raise SenriError("the text has no token to score: perplexity needs at least one token and one before it.")
    return result
