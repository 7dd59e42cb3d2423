"""Checks of what is handed to a memory; every failure names the argument and the shape it must have."""

from torch import Tensor

from senri.errors import SenriError
from senri.memory.base import LayerState, Memory


def check_rows(state: LayerState, batch: int) -> None:
    """Check that a state fits a call of `batch` rows.

    Raises:
        SenriError: a tensor of the state has another number of rows (1 fits all).
    """
    for name, tensor in state.items():
        if tensor.shape[0] not in (1, batch):
            raise SenriError(
                f"the memory state's {name!r} has {tensor.shape[0]} rows, but the call has {batch}: "
                f"reset the memory or make a state with init_state({batch})."
            )


def check_call(
    memory: Memory,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    state: LayerState,
    beta: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Check the arguments of `Memory.scan` (or, without q, of `Memory.write`).

    Raises:
        SenriError: a shape that does not fit the memory, the keys or the state, or a decay that the rule does not use.
    """
    batch, seq, heads = k.shape[0], k.shape[-2], memory.num_key_value_heads
    wanted = {
        "q": (q, (batch, memory.num_heads, seq, memory.key_dim)),
        "k": (k, (batch, heads, seq, memory.key_dim)),
        "v": (v, (batch, heads, seq, memory.value_dim)),
        "beta": (beta, (batch, heads, seq)),
        "decay": (decay, (batch, heads, seq)),
        "mask": (mask, (batch, seq)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise SenriError(f"{name} of the memory has shape {tuple(tensor.shape)}, but it must be {shape}.")
    if decay is not None and memory.config.rule != "gated_delta":
        raise SenriError(f"decay was given, but memory.rule is {memory.config.rule!r}: only 'gated_delta' decays.")
    check_rows(state, batch)


def check_sizes(memory: Memory) -> None:
    """Check the sizes of a memory that is being built.

    Raises:
        SenriError: a size below 1, or query heads that the key/value heads cannot share.
    """
    for name in ("num_heads", "num_key_value_heads", "key_dim", "value_dim"):
        if getattr(memory, name) < 1:
            raise SenriError(f"{name} of the memory is {getattr(memory, name)}, but it must be at least 1.")
    if memory.num_heads % memory.num_key_value_heads:
        raise SenriError(
            f"num_heads {memory.num_heads} of the memory is not a multiple of num_key_value_heads "
            f"{memory.num_key_value_heads}: every key/value head serves the same number of query heads."
        )
