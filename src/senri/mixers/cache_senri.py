"""Where a memory's state lives: layers of transformers' cache that carry it beside (or instead of) keys and values.

`config.layer_types` uses names that transformers knows (`linear_attention`, `hybrid`, `hybrid_sliding`), so every route
to a cache (`generate`, `DynamicCache(config=...)`, `StaticCache(config=...)`, a bare `DynamicCache()`) builds stock
layers; `adopt_cache` swaps those of memory layers for the classes here. Unlike the stock linear layers these follow
beam reordering, batch repetition and selection, reset, and an exact `crop`.
"""

import copy
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.utils.import_utils import is_torchdynamo_compiling

from senri.memory.base import LayerState
from senri.memory.branch import MemoryBranch
from senri.memory.shared_read import SharedReader
from senri.mixers.recorded_write import RecordedWrite, select_rows

Branch = MemoryBranch | SharedReader
MEMORY_LAYER_TYPES = ("linear_attention", "hybrid", "hybrid_sliding")


class SenriMemoryLayer(LinearAttentionLayer):
    """Cache layer of a memory alone: a state and no keys or values."""

    is_static = False

    def __init__(self, branch: Branch, **kwargs: Any) -> None:
        LinearAttentionLayer.__init__(self)
        if not hasattr(self, "keys"):
            # transformers gathers `keys` and `values` of every layer, this one has none.
            self.keys = self.values = None
        # Weak, so that copying a cache does not copy the model's weights.
        self.branch = weakref.ref(branch)
        self.shared_scope = branch.config.scope == "batch"
        self.memory_state: LayerState | None = None
        self.recorded: list[RecordedWrite] = []

    @property
    def is_croppable(self) -> bool:
        """A memory can be put back exactly: its writes are recorded and replayed."""
        return True

    def memory_before(self, batch_size: int, device: torch.device) -> LayerState:
        """Return the state to read from; the empty one before anything was written."""
        if self.memory_state is None:
            self.memory_state = self._branch().init_state(batch_size, device)
            if self.is_static:
                self.memory_state = self._branch().allocate(self.memory_state)
            if self.is_static and not is_torchdynamo_compiling():
                for tensor in self.memory_state.values():
                    torch._dynamo.mark_static_address(tensor)
        return self.memory_state

    def store_memory(self, state: LayerState, write: RecordedWrite) -> None:
        """Keep the state after a write; while recording, also what is needed to undo it."""
        self.has_previous_state[0] = True
        if self.record_past:
            self.recorded.append(write)
        if self.is_static and not self.record_past and self.memory_state is not None and not _has_graph(state):
            # A compiled graph holds the addresses of these tensors.
            for name, tensor in state.items():
                self.memory_state[name].copy_(tensor)
        else:
            self.memory_state = state

    def set_memory(self, state: LayerState | None, batch_size: int, device: torch.device) -> None:
        """Take over a copy of another state, None for the empty one; a state of one row serves all rows."""
        self.recorded = []
        if state is None:
            self.memory_state = None
            return
        rows = {name: tensor.shape[0] for name, tensor in self._branch().init_state(batch_size, device).items()}
        # a routed memory has one tensor more than its single form in training, with the rows of its matrix
        self.memory_state = {
            name: tensor.to(device).expand(rows.get(name, rows.get("M", 1)), *tensor.shape[1:]).clone()
            for name, tensor in state.items()
        }

    def crop(self, tokens_to_remove: int) -> None:
        """Undo the last `-tokens_to_remove` tokens exactly.

        Raises:
            RuntimeError: recording was not activated, or it does not reach back so far.
        """
        if tokens_to_remove > 0:
            raise RuntimeError("a memory can only be cropped by a negative number: how many tokens to remove")
        if not self.record_past:
            raise RuntimeError(
                "`crop` was called, but this memory layer does not record its past. Call `activate_past_recording` "
                "before the forward pass that is to be undone."
            )
        remaining = -tokens_to_remove
        if remaining > sum(write.length for write in self.recorded):
            raise RuntimeError(
                f"cannot remove {remaining} tokens from a memory: fewer were written since recording began"
            )
        while remaining > 0:
            write = self.recorded.pop()
            self.memory_state = write.before
            if write.length > remaining:
                kept = write.first(write.length - remaining)
                self.memory_state = kept.replay(self._branch())
                self.recorded.append(kept)
            remaining -= min(remaining, write.length)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.recorded = []
        if self.is_static and self.memory_state:
            device = next(iter(self.memory_state.values())).device
            empty = self._branch().allocate(self._branch().init_state(self._batch_size(), device))
            for name, tensor in empty.items():
                self.memory_state[name].copy_(tensor)
        else:
            self.memory_state = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow beam search."""
        self._select_memory_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        rows = self._batch_size()
        if rows:
            self._select_memory_rows(torch.arange(rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows of the batch."""
        self._select_memory_rows(indices)

    def detach_(self) -> None:
        """Cut the graph here: truncated back-propagation through time."""
        if self.memory_state is not None:
            self.memory_state = {name: tensor.detach() for name, tensor in self.memory_state.items()}

    def _branch(self) -> Branch:
        branch = self.branch()
        if branch is None:
            raise RuntimeError("the model that this cache belongs to no longer exists")
        return branch

    def _batch_size(self) -> int:
        if self.memory_state is None:
            return 0
        return max((tensor.shape[0] for tensor in self.memory_state.values()), default=0)

    def _select_memory_rows(self, indices: Tensor) -> None:
        if self.memory_state is not None:
            self.memory_state = select_rows(self.memory_state, indices, self.shared_scope)
        self.recorded = [write.select_rows(indices, self.shared_scope) for write in self.recorded]


class _MemoryAndKeysLayer(SenriMemoryLayer):
    """Common to the layers with a memory and keys and values; `keys_class` is transformers' layer for the latter."""

    keys_class: type[Any]

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        self.keys_class.lazy_initialization(self, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        SenriMemoryLayer.crop(self, tokens_to_remove)
        self.keys_class.crop(self, tokens_to_remove)

    def reset(self) -> None:
        SenriMemoryLayer.reset(self)
        self.keys_class.reset(self)

    def offload(self) -> None:
        self.keys_class.offload(self)

    def prefetch(self) -> None:
        self.keys_class.prefetch(self)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        SenriMemoryLayer.reorder_cache(self, beam_idx)
        self.keys_class.reorder_cache(self, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        SenriMemoryLayer.batch_repeat_interleave(self, repeats)
        self.keys_class.batch_repeat_interleave(self, repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        SenriMemoryLayer.batch_select_indices(self, indices)
        self.keys_class.batch_select_indices(self, indices)

    def activate_past_recording(self) -> None:
        self.record_past = True

    def get_max_length(self) -> int:
        return int(self.keys_class.get_max_length(self))


class SenriMemoryFullLayer(_MemoryAndKeysLayer, DynamicLayer):
    """A memory beside full attention."""

    is_compileable = False
    keys_class = DynamicLayer

    def __init__(self, branch: Branch, **kwargs: Any) -> None:
        DynamicLayer.__init__(self)
        SenriMemoryLayer.__init__(self, branch)


class SenriMemorySlidingLayer(_MemoryAndKeysLayer, DynamicSlidingWindowLayer):
    """A memory beside a sliding window."""

    is_compileable = False
    keys_class = DynamicSlidingWindowLayer

    def __init__(self, branch: Branch, sliding_window: int, **kwargs: Any) -> None:
        DynamicSlidingWindowLayer.__init__(self, sliding_window=sliding_window)
        SenriMemoryLayer.__init__(self, branch)


class SenriMemoryStaticLayer(SenriMemoryLayer):
    """A memory alone whose tensors keep their addresses, for compiled generation."""

    is_static = True


class SenriMemoryStaticFullLayer(_MemoryAndKeysLayer, StaticLayer):
    """A memory beside full attention, preallocated."""

    is_static = True
    is_compileable = True
    keys_class = StaticLayer

    def __init__(self, branch: Branch, max_cache_len: int, **kwargs: Any) -> None:
        StaticLayer.__init__(self, max_cache_len=max_cache_len)
        SenriMemoryLayer.__init__(self, branch)


class SenriMemoryStaticSlidingLayer(_MemoryAndKeysLayer, StaticSlidingWindowLayer):
    """A memory beside a sliding window, preallocated."""

    is_static = True
    is_compileable = True
    keys_class = StaticSlidingWindowLayer

    def __init__(self, branch: Branch, max_cache_len: int, sliding_window: int, **kwargs: Any) -> None:
        StaticSlidingWindowLayer.__init__(self, max_cache_len=max_cache_len, sliding_window=sliding_window)
        SenriMemoryLayer.__init__(self, branch)


def adopt_cache(cache: Cache | None, config: Any, branches: Mapping[int, Branch]) -> Cache | None:
    """Give the memory layers of a transformers cache Senri's classes. Idempotent.

    Args:
        cache: any transformers cache; None stays None.
        config: the model's `SenriConfig`.
        branches: the memory of each memory layer, by layer index.

    Raises:
        ValueError: the cache was built without the model's config, or already holds keys of another kind.
    """
    if cache is None:
        return None
    if cache.layer_class_to_replicate is not None and not cache.layers:
        cache.layers = DynamicCache(config=config).layers
        cache.layer_class_to_replicate = None
    for index, branch in branches.items():
        old = cache.layers[index]
        if isinstance(old, SenriMemoryLayer):
            continue
        if not isinstance(old, LinearAttentionCacheLayerMixin):
            raise ValueError(
                f"cache layer {index} is a {type(old).__name__}, but that layer of the model has a memory: "
                "build the cache with `config=model.config`."
            )
        cache.layers[index] = _senri_layer(old, branch, is_static=isinstance(cache, StaticCache))
    return cache


def peek_cache(cache: Cache) -> Cache:
    """Return a twin to read on with while the cache stays as it is. It shares the tensors, which no call changes."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in twin.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict | list):
                setattr(layer, name, value.copy())
    return twin


def fork_cache(cache: Cache) -> Cache:
    """Return an independent copy without the autograd graph, which cannot be copied."""
    copies: dict[int, Any] = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                if isinstance(tensor, Tensor):
                    copies[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(cache, copies)


def _has_graph(state: LayerState) -> bool:
    """Tell whether gradients flow through a state; its tensors may then be saved for the backward pass."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in state.values())


def _senri_layer(old: Any, branch: Branch, is_static: bool) -> SenriMemoryLayer:
    new: SenriMemoryLayer
    if isinstance(old, StaticSlidingWindowLayer):
        # The stock layer already cut its length to the window, so it serves as both.
        new = SenriMemoryStaticSlidingLayer(branch, max_cache_len=old.max_cache_len, sliding_window=old.max_cache_len)
    elif isinstance(old, StaticLayer):
        new = SenriMemoryStaticFullLayer(branch, max_cache_len=old.max_cache_len)
    elif isinstance(old, DynamicSlidingWindowLayer):
        new = SenriMemorySlidingLayer(branch, sliding_window=old.sliding_window)
    elif isinstance(old, DynamicLayer):
        new = SenriMemoryFullLayer(branch)
    else:
        new = SenriMemoryStaticLayer(branch) if is_static else SenriMemoryLayer(branch)
    new.record_past = old.record_past
    return new
