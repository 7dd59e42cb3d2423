"""The notebook side of a memory: hold one state, so that `update(k, v)` and `retrieve(q)` need nothing else."""

from typing import Any

from torch import Tensor

from senri.memory.base import LayerState, Memory
from senri.memory.cleaning import SVDCleaningStats


class HeldState(Memory):
    """A memory that can also hold one state. The held state is no part of `state_dict()`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: LayerState | None = None
        self._updates = 0

    @property
    def state(self) -> LayerState | None:
        """The held state; None before the first `update` and after `reset`."""
        return self._held

    @state.setter
    def state(self, state: LayerState | None) -> None:
        self._held = state

    def reset(self) -> None:
        """Forget everything that was written."""
        self._held = None
        self._updates = 0

    def update(self, k: Tensor, v: Tensor, beta: Tensor | None = None, decay: Tensor | None = None) -> None:
        """Write the tokens as one segment that is visible at once, whatever `segment_length` says.

        With `config.clean_every` = n > 0 the memory is cleaned after every n-th update. A frozen memory stays as it is.

        Args:
            k: `[batch, num_key_value_heads, seq, key_dim]`.
            v: `[batch, num_key_value_heads, seq, value_dim]`.
            beta: write strength `[batch, num_key_value_heads, seq]`; None for `config.write_strength`.
            decay: the same shape; None for `config.decay`. Only with the rule `gated_delta`.

        Raises:
            SenriError: shapes that do not fit the memory or the held state.
        """
        state = self.init_state(k.shape[0], k.device) if self._held is None else self._held
        self._held = self._write_at_once(k, v, state, beta, decay)
        self._updates += 1
        if self.config.clean_every and self._updates % self.config.clean_every == 0 and not self.frozen:
            self.svd_cleaning(self.config.clean_energy)

    def retrieve(self, q: Tensor) -> Tensor:
        """Read queries `[batch, num_heads, seq, key_dim]`; zeros `[..., value_dim]` before any update."""
        state = self.init_state(q.shape[0], q.device) if self._held is None else self._held
        return self.read(q, state)

    def svd_cleaning(self, energy_threshold: float = 0.95, max_rank: int | None = None) -> SVDCleaningStats:
        """Keep only the strongest singular directions of the held matrix (see `cleaning.clean_matrix`).

        Raises:
            RuntimeError: nothing was written yet.
            SenriError: a threshold outside (0, 1] or a `max_rank` below 1.
        """
        if self._held is None:
            raise RuntimeError("the memory holds no state yet: call update(k, v) before svd_cleaning()")
        self._held, stats = self.clean(self._held, energy_threshold, max_rank)
        return stats

    def _write_at_once(
        self, k: Tensor, v: Tensor, state: LayerState, beta: Tensor | None, decay: Tensor | None
    ) -> LayerState:
        """Write the tokens so that the next read sees them all. Memories that write by segments override this."""
        return self.write(k, v, state, beta, decay)
