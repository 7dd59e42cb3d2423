"""What a memory's cache layer remembers of a write, so that `crop` can undo it exactly."""

from dataclasses import dataclass, replace

from torch import Tensor

from senri.memory.base import LayerState
from senri.memory.branch import MemoryBranch
from senri.memory.shared_read import SharedReader


@dataclass
class RecordedWrite:
    """One write: the state before it and what was written.

    Args:
        before: the state before the write.
        hidden_states: `[batch, seq, hidden]`.
        shared: the layer's own q, k, v (or k, v) of these tokens, or the values that a copying memory was given;
            None when the branch projects for itself.
        mask: `[batch, seq]`, False for padding.
        wrote: False for tokens that a disabled memory let pass.
        frozen: whether the memory was frozen, so that only the inputs' past moved on.
    """

    before: LayerState
    hidden_states: Tensor
    shared: tuple[Tensor, ...] | None
    mask: Tensor | None
    wrote: bool = True
    frozen: bool = False

    @property
    def length(self) -> int:
        """Tokens in this write."""
        return self.hidden_states.shape[1]

    def first(self, tokens: int) -> "RecordedWrite":
        """Return the write of only the first `tokens` tokens."""
        shared = None if self.shared is None else tuple(part[:, :, :tokens] for part in self.shared)
        mask = None if self.mask is None else self.mask[:, :tokens]
        return replace(self, hidden_states=self.hidden_states[:, :tokens], shared=shared, mask=mask)

    def replay(self, branch: MemoryBranch | SharedReader) -> LayerState:
        """Write again and return the state after it."""
        if not self.wrote:
            return self.before
        return branch.write(self.hidden_states, self.before, self.shared, self.mask, self.frozen)

    def select_rows(self, indices: Tensor, shared_scope: bool) -> "RecordedWrite":
        """Return the write for the given rows of the batch."""
        shared = None if self.shared is None else tuple(part[indices] for part in self.shared)
        mask = None if self.mask is None else self.mask[indices]
        before = select_rows(self.before, indices, shared_scope)
        return replace(self, before=before, hidden_states=self.hidden_states[indices], shared=shared, mask=mask)


def select_rows(state: LayerState, indices: Tensor, shared_scope: bool) -> LayerState:
    """Return a state for the given rows; with the scope `batch`, what all rows share has one row and stays."""
    return {
        name: tensor if shared_scope and tensor.shape[0] == 1 else tensor.index_select(0, indices.to(tensor.device))
        for name, tensor in state.items()
    }
