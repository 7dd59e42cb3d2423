"""A reader goes through a text in pieces and can be forked: Senri's session, or any other model over its KV cache.

Every measure that reads a long text uses this, so that a converted model, its base and a peer are measured by the same
code.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from senri.evaluation.footprint import layer_bytes
from senri.models import SenriForCausalLM, Session


class Reader(Protocol):
    """One text on its way through a model; `senri.models.Session` is one."""

    @property
    def tokens_read(self) -> int:
        """Return the tokens read so far."""
        ...

    def read(self, input_ids: Tensor) -> Tensor:
        """Read `[1, seq]` and return the logits after the last token, `[1, vocabulary]`."""
        ...

    def logits(self, input_ids: Tensor, logits_to_keep: int = 0) -> Tensor:
        """Read `[1, seq]` and return the logits `[1, kept, vocabulary]`, of all positions by default."""
        ...

    def generate(self, input_ids: Tensor, generation_config: GenerationConfig | None = None, **kwargs: Any) -> Tensor:
        """Read a prompt `[1, seq]`, generate after it and return the new ids `[1, new]`."""
        ...

    def fork(self) -> "Reader":
        """Return an independent copy: reading in one does not touch the other."""
        ...

    def memory_bytes(self) -> int:
        """Return the bytes of memory states."""
        ...

    def window_bytes(self) -> int:
        """Return the bytes of kept keys and values."""
        ...


class CacheReader:
    """Reads with any causal language model of transformers, keeping its cache: keys and values of all that was read.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: Any = DynamicCache(config=model.config)
        self._tokens = 0

    @property
    def tokens_read(self) -> int:
        """Tokens read so far."""
        return self._tokens

    def read(self, input_ids: Tensor) -> Tensor:
        """Read `[1, seq]` and return the logits after the last token, `[1, vocabulary]`."""
        return self.logits(input_ids, logits_to_keep=1)[:, -1]

    @torch.no_grad()
    def logits(self, input_ids: Tensor, logits_to_keep: int = 0) -> Tensor:
        """Read `[1, seq]` and return the logits `[1, kept, vocabulary]`, of all positions by default."""
        out = self.model(
            input_ids=input_ids.to(self.model.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        self._tokens += input_ids.shape[1]
        logits: Tensor = out.logits
        return logits

    @torch.no_grad()
    def generate(self, input_ids: Tensor, generation_config: GenerationConfig | None = None, **kwargs: Any) -> Tensor:
        """Read a prompt `[1, seq]`, generate after it and return the new ids `[1, new]`."""
        input_ids = input_ids.to(self.model.device)
        # A mask longer than the ids tells transformers that the ids follow what the cache holds.
        seen = torch.ones((1, self._tokens + input_ids.shape[1]), dtype=torch.long, device=input_ids.device)
        result = self.model.generate(
            input_ids, generation_config, attention_mask=seen, past_key_values=self.cache, **kwargs
        )
        new: Tensor = result[:, input_ids.shape[1] :]
        # The last token that is generated is never read.
        self._tokens += input_ids.shape[1] + max(new.shape[1] - 1, 0)
        return new

    def fork(self) -> "CacheReader":
        """Return an independent copy. It shares the tensors, which dynamic layers replace and never change."""
        twin = CacheReader(self.model)
        twin.cache = _fork(self.cache)
        twin._tokens = self._tokens
        return twin

    def memory_bytes(self) -> int:
        """Bytes of recurrent states, where the model has any."""
        return sum(layer.state_bytes for layer in layer_bytes(self.cache))

    def window_bytes(self) -> int:
        """Bytes of all kept keys and values; they grow with the text unless the model has windows of its own."""
        return sum(layer.key_value_bytes for layer in layer_bytes(self.cache))


def open_reader(model: Any) -> Reader:
    """Return a reader that has read nothing: a session of a Senri model, a `CacheReader` of any other."""
    return Session(model) if isinstance(model, SenriForCausalLM) else CacheReader(model)


@contextmanager
def without_memory(model: Any) -> Iterator[None]:
    """Switch a Senri model's memories off within the block; another model stays as it is."""
    if isinstance(model, SenriForCausalLM):
        with model.memory_disabled():
            yield
    else:
        yield


def _fork(cache: Any) -> Any:
    """Copy a cache; recurrent states, which are written in place, are copied as well."""
    shared: dict[int, Any] = {}
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin):
            shared |= {id(part): part for part in (layer.keys, layer.values) if isinstance(part, Tensor)}
    return copy.deepcopy(cache, shared)
