"""The registry of memories: a name in the configuration to the class that implements it."""

from collections.abc import Mapping
from typing import Any

from senri.errors import SenriError, nearest
from senri.memory.base import Memory
from senri.memory.config import MemoryConfig
from senri.memory.hierarchical import HierarchicalMemory
from senri.memory.least_squares import LeastSquaresMemory
from senri.memory.multi import MultiMemory
from senri.memory.orthogonal import OrthogonalBasisMemory
from senri.memory.tensor import TensorMemory
from senri.memory.typed import from_mapping

MEMORIES: dict[str, type[Memory]] = {
    "tensor": TensorMemory,
    "least_squares": LeastSquaresMemory,
    "multi": MultiMemory,
    "hierarchical": HierarchicalMemory,
    "orthogonal": OrthogonalBasisMemory,
}
"""The memories by the name that `MemoryConfig.type` uses. A new memory is one line more, here or in your program."""


def memory_class(name: str) -> type[Memory]:
    """Return the class of a memory type.

    Raises:
        SenriError: an unknown type, with the nearest.
    """
    if name not in MEMORIES:
        raise SenriError(f"memory.type is {name!r}: {nearest(name, MEMORIES)}")
    return MEMORIES[name]


def resolve_config(values: Mapping[str, Any]) -> MemoryConfig:
    """Build the knobs of a memory from a mapping; what it leaves out is the default of its type.

    Raises:
        SenriError: an unknown type, key or option, or a wrong value.
    """
    kind = memory_class(str(values.get("type", MemoryConfig.type)))
    config = MemoryConfig.from_dict({**kind.DEFAULTS, **values})
    from_mapping(kind.Options, config.options, "memory.options")
    return config


def memory_rule(config: MemoryConfig) -> str:
    """Return what a file's header says of how writes add up: the rule, or the type where states cannot be added."""
    return config.rule if memory_class(config.type).adds_up else config.type


def build_memory(
    config: MemoryConfig,
    hidden_size: int,
    num_heads: int,
    num_key_value_heads: int | None = None,
    key_dim: int | None = None,
    value_dim: int | None = None,
) -> Memory:
    """Build the memory that `config.type` names, with the given sizes.

    Raises:
        SenriError: an unknown type, or sizes that do not fit it.
    """
    sizes = (hidden_size, num_heads, num_key_value_heads, key_dim, value_dim)
    build: Any = memory_class(config.type)
    memory: Memory = build(*sizes, config=config)
    return memory
