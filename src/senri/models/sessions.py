"""Sessions of a model: one live state that goes on over many calls, opened, read, kept and handed over."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from senri.errors import SenriError
from senri.memory.state import MemoryState
from senri.models.session import Session


class SessionMixin:
    """Adds an optional open session to a causal language model. Without one, every call starts afresh."""

    _session: Session | None = None

    @contextmanager
    def new_sequence(self, batch_size: int = 1) -> Iterator[Session]:
        """Open a fresh session; calls inside go on from each other, `generate` included. Ends with the block."""
        outer, self._session = self._session, Session(self, batch_size)
        try:
            yield self._session
        finally:
            self._session = outer

    def reset_memory(self) -> None:
        """Forget the open session's state; the next `update_memory=True` begins with nothing."""
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
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as in transformers; inside a session the prompt follows what was read, and both are kept."""
        if self._session is None or kwargs.get("past_key_values") is not None or kwargs.get("use_cache") is False:
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        prompt = kwargs.pop("input_ids", None) if inputs is None else inputs
        if prompt is None or args or kwargs.pop("attention_mask", None) is not None and prompt.shape[0] > 1:
            raise SenriError("inside a session, generate takes input_ids of one sequence and keyword arguments.")
        session, self._session = self._session, None
        try:
            new = session.generate(prompt, **kwargs)
        finally:
            self._session = session
        return torch.cat([prompt.to(new.device), new], dim=1)

    def _session_cache(self, inputs: Tensor | None, update_memory: bool) -> Cache | None:
        if self._session is None and update_memory:
            self._session = Session(self, 1 if inputs is None else inputs.shape[0])
        return None if self._session is None else self._session.cache
