"""The memory of one layer: a branch with a state of its own, or one that reads the state of an earlier layer."""

from typing import Any

from senri.memory.branch import MemoryBranch
from senri.memory.shared_read import SharedReader


def build_branch(config: Any, layer_idx: int) -> MemoryBranch | SharedReader:
    """Return the memory of a layer of a `SenriConfig`."""
    writer = config.writing_layer(layer_idx)
    kind = MemoryBranch if writer == layer_idx else SharedReader
    return kind(config.memory_config_of(layer_idx), **config.memory_sizes(layer_idx))
