"""Runs a memory in a forward pass: takes its state from the cache, puts the new one back, keeps packing apart."""

from torch import Tensor
from transformers.cache_utils import Cache

from senri.memory.base import LayerState
from senri.memory.branch import MemoryBranch
from senri.memory.shared_read import SharedReader
from senri.mixers.cache_senri import SenriMemoryLayer
from senri.mixers.context import MixerMasks, PackedRows
from senri.mixers.recorded_write import RecordedWrite


def recall(
    branch: MemoryBranch | SharedReader,
    hidden_states: Tensor,
    shared: tuple[Tensor, ...] | None,
    masks: MixerMasks,
    past_key_values: Cache | None,
    layer_idx: int,
) -> Tensor:
    """Read from and write to a layer's memory for one run of tokens.

    Without a cache the state starts empty: in training each sample begins with nothing.

    Args:
        branch: the layer's memory.
        hidden_states: `[batch, seq, hidden]`, the mixer's input.
        shared: the layer's own q, k, v before positions; values and ids for a memory that copies; None when the branch
            projects for itself.
        masks: padding and packing of this pass.
        past_key_values: the cache, adopted by `adopt_cache`.
        layer_idx: index of the layer.

    Returns:
        `[batch, seq, heads, value_dim]`.
    """
    if masks.sequence_ids is not None:
        return _recall_packed(branch, hidden_states, shared, masks, masks.sequence_ids)
    batch = hidden_states.shape[0]
    if past_key_values is None:
        state = branch.init_state(batch, hidden_states.device)
        return _run(branch, hidden_states, state, shared, masks, masks.tokens)[0]
    layer = past_key_values.layers[layer_idx]
    assert isinstance(layer, SenriMemoryLayer)
    before = layer.memory_before(batch, hidden_states.device)
    if layer.is_static and branch.config.state == "shared":
        before = {name: tensor.clone() for name, tensor in before.items()}  # others read it after it was overwritten
    out, state = _run(branch, hidden_states, before, shared, masks, masks.tokens)
    written: tuple[Tensor, ...] | None = shared
    if shared is not None and len(shared) == 3 and not branch.config.short_convolution:
        written = shared[1:]  # a convolution's past holds queries too; otherwise they leave no trace
    frozen = isinstance(branch, MemoryBranch) and branch.memory.frozen
    layer.store_memory(state, RecordedWrite(before, hidden_states, written, masks.tokens, frozen=frozen))
    return out


def not_written_yet(
    branch: MemoryBranch | SharedReader, ids: Tensor, masks: MixerMasks, past_key_values: Cache | None, layer_idx: int
) -> Tensor | None:
    """Return for each token itself and those before it that the memory has not written when `recall` reads there, -1
    for none or unknown: `[batch, seq, late]`; None for a memory that does not wait, or that another layer writes.

    Args:
        branch: the layer's memory, which is given tokens.
        ids: `[batch, 1, seq, 1]`, as it is given them.
        masks: padding and packing of this pass.
        past_key_values: the cache as it is before `recall`.
        layer_idx: index of the layer.
    """
    if isinstance(branch, SharedReader) or not branch.config.tokens_late:
        return None
    if masks.sequence_ids is not None:
        rows = PackedRows.from_sequence_ids(masks.sequence_ids)
        (unpacked,) = _unpacked(rows, (ids,))
        recent = branch.inputs.recent(unpacked, branch.inputs.init_state(1, ids.device), rows.mask)
        return rows.pack(recent, like=masks.sequence_ids)
    if past_key_values is None:
        return branch.inputs.recent(ids, branch.inputs.init_state(1, ids.device), masks.tokens)
    layer = past_key_values.layers[layer_idx]
    assert isinstance(layer, SenriMemoryLayer)
    return branch.inputs.recent(ids, layer.memory_before(len(ids), ids.device), masks.tokens)


def let_pass(hidden_states: Tensor, past_key_values: Cache | None, layer_idx: int) -> None:
    """Count tokens `[batch, seq, hidden]` that a disabled memory does not write, so that a `crop` finds them."""
    if past_key_values is None:
        return
    layer = past_key_values.layers[layer_idx]
    assert isinstance(layer, SenriMemoryLayer)
    if layer.record_past:
        before = layer.memory_before(hidden_states.shape[0], hidden_states.device)
        layer.recorded.append(RecordedWrite(before, hidden_states, None, None, wrote=False))


def _run(
    branch: MemoryBranch | SharedReader,
    hidden_states: Tensor,
    state: LayerState,
    shared: tuple[Tensor, ...] | None,
    masks: MixerMasks,
    mask: Tensor | None,
) -> tuple[Tensor, LayerState]:
    out: Tensor
    if isinstance(branch, SharedReader):
        out, new_state = branch(hidden_states, state, masks.shared_write, mask)
    else:
        out, new_state, write = branch.run(hidden_states, state, shared, mask)
        if branch.config.state == "shared":
            masks.shared_write = write
    return out.transpose(1, 2), new_state


def _recall_packed(
    branch: MemoryBranch | SharedReader,
    hidden_states: Tensor,
    shared: tuple[Tensor, ...] | None,
    masks: MixerMasks,
    sequence_ids: Tensor,
) -> Tensor:
    rows = PackedRows.from_sequence_ids(sequence_ids)
    state = branch.init_state(rows.shape[0], hidden_states.device)
    unpacked = None if shared is None else _unpacked(rows, shared)
    out, _ = _run(branch, rows.unpack(hidden_states), state, unpacked, masks, rows.mask)
    return rows.pack(out, like=hidden_states)


def _unpacked(rows: PackedRows, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(rows.unpack(part.transpose(1, 2)).transpose(1, 2) for part in parts)
