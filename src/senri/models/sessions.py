"""Sessions of a model: one live state that goes on over many calls, opened, read, kept and handed over."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from senri.errors import SenriError
from senri.memory.base import Memory
from senri.memory.branch import MemoryBranch
from senri.memory.state import MemoryState
from senri.mixers.cache_senri import peek_cache
from senri.models.session import Session


class SessionMixin:
    """Adds an optional open session to a causal language model. Without one, every call starts afresh.

    Inside `with model.new_sequence():` every call reads on and is kept. Outside, only calls with `update_memory=True`
    write to the session that they open; other calls read from it and leave it as it is.
    """

    _session: Session | None = None
    _in_sequence = False

    @contextmanager
    def new_sequence(self, batch_size: int = 1) -> Iterator[Session]:
        """Open a fresh session; calls inside go on from each other, `generate` included. Ends with the block."""
        outer, was_in_sequence = self._session, self._in_sequence
        self._session, self._in_sequence = Session(self, batch_size), True
        try:
            yield self._session
        finally:
            self._session, self._in_sequence = outer, was_in_sequence

    def reset_memory(self) -> None:
        """Forget the session's state. Inside `with model.new_sequence():` that session goes on, empty; else it ends."""
        if self._in_sequence and self._session is not None:
            self._session.reset()
        else:
            self._session = None

    def get_memory_state(self) -> MemoryState:
        """Return a copy of the open session's memory.

        Raises:
            SenriError: no session is open.
        """
        if self._session is None:
            raise SenriError(
                "this model has no memory yet: call it with update_memory=True or inside `with model.new_sequence():`."
            )
        return self._session.get_memory_state()

    def set_memory_state(self, state: MemoryState) -> None:
        """Go on from a kept memory (without its window) in the open session, opening one if there is none.

        Raises:
            SenriError: the state belongs to another model.
        """
        if self._session is None:
            self._session = Session(self, state.batch_size)
        self._session.set_memory_state(state)

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Generate as in transformers; in a session the prompt follows what was read.

        Inside `with model.new_sequence():` prompt and answer are kept.

        Raises:
            SenriError: inside a session, anything but one whole row of token ids.
        """
        if self._session is None or kwargs.get("past_key_values") is not None:
            with self._deciding():
                return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]
        prompt = kwargs.pop("input_ids", None) if inputs is None else inputs
        if prompt is None or args:
            raise SenriError("inside a session, generate takes input_ids of one sequence and keyword arguments.")
        _refuse_padding(kwargs.pop("attention_mask", None))
        return self._session.generate_whole(prompt, generation_config, keep=self._in_sequence, **kwargs)

    def freeze(self, layers: Sequence[int] | None = None) -> None:
        """Stop the writing of memories; reads go on. Says nothing about parameters and their gradients.

        Args:
            layers: indices of the layers; all with a memory if None. A shared state is frozen in the layer that writes.

        Raises:
            SenriError: a layer that writes no memory.
        """
        for memory in self._memories(layers):
            memory.freeze()

    def unfreeze(self, layers: Sequence[int] | None = None) -> None:
        """Let memories write again; `layers` as in `freeze`."""
        for memory in self._memories(layers):
            memory.unfreeze()

    def _memories(self, layers: Sequence[int] | None = None) -> list[Memory]:
        branches = self.model.memory_branches()  # type: ignore[attr-defined]
        written = {index: branch.memory for index, branch in branches.items() if isinstance(branch, MemoryBranch)}
        for layer in layers or ():
            if layer not in written:
                raise SenriError(f"layer {layer} writes no memory: those that do are {sorted(written)}.")
        return [memory for index, memory in written.items() if layers is None or index in layers]

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Let memories take whole decisions for as long as text is generated."""
        memories = self._memories()
        before = [memory.deciding for memory in memories]
        for memory in memories:
            memory.deciding = True
        try:
            yield
        finally:
            for memory, was in zip(memories, before, strict=True):
                memory.deciding = was

    def _session_cache(self, inputs: Tensor | None, attention_mask: Any, update_memory: bool) -> Cache | None:
        """Return the cache that a call reads on with; of a session that is not to be written, a twin.

        Opens a session for `update_memory`.
        """
        if self._session is None and not update_memory:
            return None
        rows = 1 if inputs is None else inputs.shape[0]
        if self._session is None:
            self._session = Session(self, rows)
        if rows != self._session.batch_size:
            raise SenriError(
                f"the open session has {self._session.batch_size} row(s), but this call has {rows}: open one with "
                f"new_sequence(batch_size={rows}), or call reset_memory() first."
            )
        if self.training and self.is_activation_checkpointing:  # type: ignore[attr-defined]
            raise SenriError(
                "gradient checkpointing keeps no state between calls: switch it off to train in a session."
            )
        _refuse_padding(attention_mask)
        cache: Cache = self._session.cache
        return cache if update_memory or self._in_sequence else peek_cache(cache)


def _refuse_padding(attention_mask: Any) -> None:
    if attention_mask is not None and not bool(torch.as_tensor(attention_mask).all()):
        raise SenriError("attention_mask hides tokens, but a session keeps all it reads: leave padding out.")
