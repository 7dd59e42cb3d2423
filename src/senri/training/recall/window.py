"""Window: the text that stands before a question when it is asked.

In use, a question comes behind hundreds of other tokens, which every layer attends to. A memory that was trained on
questions behind nothing is heard there less, and disturbs more. So questions are trained behind a window too.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from senri.mixers.cache_senri import peek_cache
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.evaluating import evaluating


class Window:
    """Text before questions, read by the layers below the memory; the others read it with or without memories.

    Args:
        model: a Senri model.
        ids: `[1, window]`, the text.
        start_layer: the first layer that is trained.
        states: `[1, window, hidden]`, what enters that layer where the text stands; by default within the window alone.
    """

    @torch.no_grad()
    def __init__(self, model: SenriForCausalLM, ids: Tensor, start_layer: int, states: Tensor | None = None) -> None:
        self._model, self._start_layer = model, start_layer
        # As behind a text whose beginning has left the window: attention sinks stand in for it.
        self._begin, self._length = model.config.sliding_window or 0, ids.shape[1]
        self._lower = self._fresh()
        run = {"position_ids": self.positions, "past_key_values": self._lower, "use_cache": True}
        with evaluating(model):
            own = model.model(ids, **run, stop_layer=start_layer).last_hidden_state
        self._states = own if states is None else states

    @property
    def positions(self) -> Tensor:
        """Positions of its tokens, `[1, window]`."""
        return self._begin + torch.arange(self._length, device=self._model.device)[None]

    def positions_behind(self, rows: int, tail: int) -> Tensor:
        """Positions of what stands behind it, `[rows, tail]`."""
        behind = self._begin + self._length + torch.arange(tail, device=self._model.device)
        return behind.expand(rows, -1)

    @torch.no_grad()
    def lower(self, ids: Tensor) -> Tensor:
        """Return what enters `start_layer` for `[rows, tail]` tokens behind the window: `[rows, tail, hidden]`."""
        cache = peek_cache(self._lower)
        cache.batch_repeat_interleave(len(ids))
        run = {"past_key_values": cache, "use_cache": True, "stop_layer": self._start_layer}
        with evaluating(self._model):
            states: Tensor = self._model.model(ids, position_ids=self.positions_behind(*ids.shape), **run)[0]
        return states

    @torch.no_grad()
    def upper(self, memories: Cache | None = None) -> Cache:
        """Return a cache in which the layers from `start_layer` on have read the window.

        Args:
            memories: those before the window, in a cache without keys, which stays as it is; None to switch them off.
        """
        cache = self._fresh() if memories is None else peek_cache(memories)
        run = {"start_layer": self._start_layer, "past_key_values": cache, "use_cache": True}
        with evaluating(self._model), self._model.memory_disabled() if memories is None else nullcontext():
            self._model.model(inputs_embeds=self._states, position_ids=self.positions, **run)
        return cache

    def _fresh(self) -> Any:
        return self._model.model.adopt(DynamicCache(config=self._model.config))
