"""What one forward pass tells every mixer: masks, positions, the cache, and which tokens belong together."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from senri.memory.shared_read import SharedWrite


@dataclass
class BandedMask:
    """Stands for a causal sliding-window mask that is never built: `sliding_window_attention` needs only the padding.

    Args:
        key_mask: `[batch, keys]`, False for padding; None when nothing is padded.
    """

    key_mask: Tensor | None


@dataclass
class MixerMasks:
    """Masks of one forward pass, by kind; each mixer takes what it needs.

    Args:
        full_attention: mask for full causal attention, in the attention implementation's own format.
        sliding_attention: the same for the sliding window, or a `BandedMask`.
        tokens: `[batch, seq]` bool, False for padding; None when nothing is padded. For memories.
        sequence_ids: `[batch, seq]`, which packed sequence a token belongs to; None when rows are whole sequences.
        beyond_window: `[batch, seq]` bool, True where the window no longer reaches the sequence's first token; None
            where that is so for no token. For attention sinks.
        input_ids: `[batch, seq]`, the tokens; None where only their embeddings were given. For memories that copy.
        embeddings: `[batch, seq, hidden]`, what entered the first layer; None where only later layers run. For memories
            that copy.
        shared_write: what the layer that writes a shared state did in this pass; it puts it here for those that read.
    """

    full_attention: Any = None
    sliding_attention: Any = None
    tokens: Tensor | None = None
    sequence_ids: Tensor | None = None
    beyond_window: Tensor | None = None
    input_ids: Tensor | None = None
    embeddings: Tensor | None = None
    shared_write: SharedWrite | None = None


@dataclass
class PackedRows:
    """Gives every packed sequence a row of its own, and puts results back: no memory crosses a sequence boundary."""

    row_index: Tensor
    column_index: Tensor
    source_rows: Tensor
    source_columns: Tensor
    shape: tuple[int, int]

    @classmethod
    def from_sequence_ids(cls, sequence_ids: Tensor) -> "PackedRows":
        """Build from `[batch, seq]` ids that do not decrease along a row."""
        batch, length = sequence_ids.shape
        starts = torch.ones_like(sequence_ids, dtype=torch.bool)
        starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
        flat_starts = starts.flatten()
        row_index = flat_starts.long().cumsum(0) - 1
        position = torch.arange(batch * length, device=sequence_ids.device)
        column_index = position - position[flat_starts][row_index]
        shape = (int(row_index[-1]) + 1, int(column_index.max()) + 1)
        return cls(row_index, column_index, position // length, position % length, shape)

    @property
    def mask(self) -> Tensor:
        """`[sequences, longest]`, True where there is a token."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.row_index.device)
        mask[self.row_index, self.column_index] = True
        return mask

    def unpack(self, tensor: Tensor) -> Tensor:
        """`[batch, seq, ...]` to `[sequences, longest, ...]`, zeros where there is no token."""
        rows = tensor.new_zeros((*self.shape, *tensor.shape[2:]))
        return rows.index_put((self.row_index, self.column_index), tensor[self.source_rows, self.source_columns])

    def pack(self, tensor: Tensor, like: Tensor) -> Tensor:
        """`[sequences, longest, ...]` back to `[batch, seq, ...]` with the batch and length of `like`."""
        packed = tensor.new_zeros((*like.shape[:2], *tensor.shape[2:]))
        return packed.index_put((self.source_rows, self.source_columns), tensor[self.row_index, self.column_index])
