"""The registry of memories: a name in the configuration to the class that implements it."""

from senri.errors import SenriError, nearest
from senri.memory.config import MemoryConfig
from senri.memory.held_state import HeldState
from senri.memory.tensor import TensorMemory

MEMORIES: dict[str, type[HeldState]] = {"tensor": TensorMemory}
"""The memories by the name that `MemoryConfig.type` uses."""


def build_memory(
    config: MemoryConfig,
    hidden_size: int,
    num_heads: int,
    num_key_value_heads: int | None = None,
    key_dim: int | None = None,
    value_dim: int | None = None,
) -> HeldState:
    """Build the memory that `config.type` names, with the given sizes.

    Raises:
        SenriError: an unknown type.
    """
    if config.type not in MEMORIES:
        raise SenriError(f"memory.type is {config.type!r}: {nearest(config.type, MEMORIES)}")
    return MEMORIES[config.type](hidden_size, num_heads, num_key_value_heads, key_dim, value_dim, config=config)
