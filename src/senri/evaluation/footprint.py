"""What reading costs: bytes a session carries, layer by layer and by formula; the KV cache it replaces; speed."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from senri.memory.shared_read import SharedReader
from senri.memory.sparse import is_sparse
from senri.mixers.branches import build_branch
from senri.models import SenriConfig

_RECURRENT = ("conv_states", "recurrent_states")


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


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps while a single sequence is read, by its configuration alone.

    Args:
        kind: what the layer is, in words.
        token_bytes: keys and values of one token; 0 for a layer that keeps none.
        most_tokens: tokens whose keys and values are kept at most; None for all of them.
        state_bytes: its memory state, the same after any number of tokens; None where the configuration does not tell.
        is_sparse: whether the state only grows up to `state_bytes`, because parts that hold nothing take no room.
    """

    kind: str
    token_bytes: int
    most_tokens: int | None = None
    state_bytes: int | None = 0
    is_sparse: bool = False

    def key_value_bytes(self, tokens: int) -> int:
        """Return the bytes of keys and values after `tokens` tokens."""
        return self.token_bytes * (tokens if self.most_tokens is None else min(tokens, self.most_tokens))

    def total_bytes(self, tokens: int) -> int:
        """Return the bytes of keys, values and state after `tokens` tokens; an unknown state counts nothing."""
        return self.key_value_bytes(tokens) + (self.state_bytes or 0)


@dataclass(frozen=True)
class LayerBytes:
    """What one layer of a cache really holds: bytes of keys and values, and of its memory state."""

    key_value_bytes: int
    state_bytes: int


def layer_shapes(config: Any, dtype: torch.dtype) -> list[LayerShape]:
    """Return what each layer of a decoder keeps, from its configuration alone.

    A token's keys and values take 2 x key/value heads x head size x bytes of a number. A sliding layer keeps those of
    the last `window - 1` tokens: the next token brings its own. A memory state is float32, and the same after any
    number of tokens.

    Args:
        config: any transformers configuration of a decoder, Senri's among them.
        dtype: type of the cached numbers.
    """
    decoder = config.get_text_config(decoder=True)
    # The layers of transformers' own cache say which attention a layer has, whatever a configuration calls it.
    layers = DynamicCache(config=config).layers
    return [_layer_shape(decoder, index, layer, _token_bytes(decoder, dtype)) for index, layer in enumerate(layers)]


def layer_bytes(cache: Any) -> list[LayerBytes]:
    """Return what each layer of a transformers cache, Senri's layers among them, holds."""
    return [LayerBytes(_bytes_of(_kept(layer)), _bytes_of(_states(layer))) for layer in cache.layers]


def held_bytes(cache: Any) -> int:
    """Return the bytes of the storage behind a cache.

    It is more than what the layers keep where a window is a view of the longer tensor that was last attended to.
    """
    parts = [part for layer in cache.layers for part in (*_kept(layer), *_states(layer))]
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values())


def kv_cache_bytes(config: Any, tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values that full attention in every layer keeps for `tokens` tokens of one sequence.

    2 (keys and values) x layers x key/value heads x head size x tokens x bytes of a number.

    Args:
        config: any transformers configuration of a decoder.
        tokens: how many.
        dtype: type of the cached numbers.
    """
    return int(config.num_hidden_layers * _token_bytes(config, dtype) * tokens)


def process_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def _token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes of one token's keys and values in one layer."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * heads * head_dim * dtype.itemsize)


def _layer_shape(config: Any, index: int, layer: Any, token_bytes: int) -> LayerShape:
    words, kept, most = [], 0, None
    if isinstance(layer, DynamicSlidingWindowLayer):
        words, kept, most = ["sliding window"], token_bytes, layer.sliding_window - 1
    elif isinstance(layer, DynamicLayer):
        words, kept = ["full attention"], token_bytes
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return LayerShape(" + ".join(words) or "keeps nothing", kept, most)
    if not isinstance(config, SenriConfig):
        return LayerShape(" + ".join([*words, "recurrent state"]), kept, most, state_bytes=None)
    with torch.device("meta"):  # the sizes of a state do not depend on the weights
        branch = build_branch(config, index).train(False)
    state = branch.init_state(1, "cpu")
    full = branch.allocate(state).values()
    sparse = is_sparse(state)
    total = _bytes_of(full) + (state["touched"].nbytes if sparse else 0)
    reads = isinstance(branch, SharedReader)
    words.append(f"memory of layer {config.writing_layer(index)}" if reads else "memory")
    return LayerShape(" + ".join(words), kept, most, total, sparse)


def _kept(layer: Any) -> list[Tensor]:
    return [part for part in (getattr(layer, "keys", None), getattr(layer, "values", None)) if part is not None]


def _states(layer: Any) -> list[Tensor]:
    if hasattr(layer, "memory_state"):
        return list((layer.memory_state or {}).values())
    groups = [getattr(layer, name, None) for name in _RECURRENT]
    parts = [part for group in groups if group for part in (group.values() if isinstance(group, dict) else [group])]
    return [part for part in parts if isinstance(part, Tensor)]


def _bytes_of(parts: Iterable[Tensor]) -> int:
    # Not nbytes of the storage: a window may be a view of what was last attended to.
    return sum(part.numel() * part.element_size() for part in parts)
