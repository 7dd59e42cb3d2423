"""Perplexity of a text in two ways that score the same tokens: overlapping windows, and one stream with its state.

Both count every token after the first exactly once, in nats, summed in float64.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senri.errors import SenriError

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
    model: nn.Module,
    ids: Tensor,
    window: int,
    stride: int,
    *,
    context: int = 1,
    num_bytes: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Score a text in overlapping windows: what the window before has scored is context and is not scored again.

    Each token after the first window is predicted from at least `window - stride + 1` tokens before it. With a stride
    as long as the window the first prediction of every window rests on one token: lm-eval's rolling log-likelihood.

    Args:
        model: any causal language model of transformers.
        ids: the text, `[1, seq]` or `[seq]`.
        window: tokens that the model sees at once.
        stride: tokens that each further window scores; at most `window`.
        context: tokens at the start that are read and not scored.
        num_bytes: UTF-8 length of the scored tokens.
        on_progress: told after each window how many more tokens are scored.

    Raises:
        SenriError: no token to score, a size below 1, or a stride above the window.

    Source: the fixed-length strategy of https://huggingface.co/docs/transformers/perplexity.
    """
    ids = ids.reshape(1, -1)
    length = ids.shape[1]
    if context < 1:
        raise SenriError(f"context is {context}, but it must be at least 1: the first token has nothing before it.")
    if not 1 <= stride <= window:
        raise SenriError(f"stride is {stride}, but it must be from 1 to the window of {window}.")
    result = Perplexity(bytes=num_bytes)
    began = time.perf_counter()
    done = context
    while done < length:
        end = min(window + 1 if done <= window else done + stride, length)
        # The last token is only a target. The window ends at its predecessor, so it is full wherever the text allows.
        seen = ids[:, max(end - 1 - window, 0) : end - 1].to(_device_of(model))
        out = model(input_ids=seen, use_cache=False, logits_to_keep=end - done)
        result._add(out.logits[0], ids[0, done:end].to(out.logits.device))
        if on_progress is not None:
            on_progress(end - done)
        done = end
    result.seconds = time.perf_counter() - began
    return _with_tokens(result)


@torch.no_grad()
def streaming_perplexity(
    session: StreamingSession,
    ids: Tensor,
    chunk_size: int,
    *,
    num_bytes: int | None = None,
    result: Perplexity | None = None,
    on_chunk: Callable[[Perplexity, int], None] | None = None,
) -> Perplexity:
    """Score a text as one stream: each token is read once, by a session that carries its state on.

    The first token is not scored. The last one is scored and not read.

    Args:
        session: what reads; it is left before the last token.
        ids: the text `[1, seq]`.
        chunk_size: tokens of one forward pass.
        num_bytes: UTF-8 length of the scored tokens.
        result: of an interrupted run over the same text, to go on from; the session must stand where it stopped.
        on_chunk: told after each chunk the result so far and how many tokens the chunk scored.

    Raises:
        SenriError: no token to score.
    """
    result = Perplexity(bytes=num_bytes) if result is None else result
    began, before = time.perf_counter(), result.seconds
    last = ids.shape[1] - 1
    for begin in range(result.tokens, last, chunk_size):
        end = min(begin + chunk_size, last)
        chunk, targets = ids[:, begin:end], ids[:, begin + 1 : end + 1]
        logits = session.logits(chunk)[0]
        result._add(logits, targets[0].to(logits.device))
        result.seconds = before + time.perf_counter() - began
        if on_chunk is not None:
            on_chunk(result, targets.shape[1])
    return _with_tokens(result)


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _with_tokens(result: Perplexity) -> Perplexity:
    if not result.tokens:
        raise SenriError("the text has no token to score: perplexity needs at least one token and one before it.")
    return result
