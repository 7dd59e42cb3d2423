"""What reading costs: bytes a session carries, bytes of the KV cache it replaces, process memory, and speed."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor


class ReadingSession(Protocol):
    """What is needed of a session; `senri.models.Session` has it."""

    @property
    def tokens_read(self) -> int:
        """Return the tokens read so far."""
        ...

    def read(self, input_ids: Tensor) -> Tensor:
        """Read `[1, seq]` tokens."""
        ...

    def memory_bytes(self) -> int:
        """Return the bytes of the memory states."""
        ...

    def window_bytes(self) -> int:
        """Return the bytes of the windows' keys and values."""
        ...


@dataclass(frozen=True)
class ReadingRecord:
    """How things stood after one chunk.

    Args:
        tokens: tokens that the session has read, from its very start.
        chunk_tokens: tokens of this chunk.
        seconds: time that this chunk took.
        state_bytes: memory states of all layers.
        window_bytes: keys and values of all windows.
        process_bytes: resident memory of the process.
    """

    tokens: int
    chunk_tokens: int
    seconds: float
    state_bytes: int
    window_bytes: int
    process_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Return the speed of this chunk."""
        return self.chunk_tokens / self.seconds


def read_chunks(session: ReadingSession, chunks: Iterable[Tensor]) -> Iterator[ReadingRecord]:
    """Let a session read chunk after chunk, and say after each how things stand. Making the chunks is not timed."""
    for chunk in chunks:
        began = time.perf_counter()
        session.read(chunk)
        seconds = time.perf_counter() - began
        yield ReadingRecord(
            tokens=session.tokens_read,
            chunk_tokens=chunk.shape[1],
            seconds=seconds,
            state_bytes=session.memory_bytes(),
            window_bytes=session.window_bytes(),
            process_bytes=process_bytes(),
        )


def kv_cache_bytes(config: Any, tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values that full attention in every layer keeps for `tokens` tokens of one sequence.

    2 (keys and values) x layers x key/value heads x head size x tokens x bytes of a number.

    Args:
        config: any transformers configuration of a decoder.
        tokens: how many.
        dtype: type of the cached numbers.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * tokens * dtype.itemsize)


def process_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)
