"""Fixed-size memories: the interface, TensorMemory, the branch that mixers use, and the memory of a whole model."""

from senri.memory.base import LayerState, Memory, state_bytes
from senri.memory.branch import MemoryBranch
from senri.memory.cleaning import SVDCleaningStats, clean_matrix
from senri.memory.config import MemoryConfig
from senri.memory.inputs import MemoryInputs, MemoryTokens
from senri.memory.registry import MEMORIES, build_memory
from senri.memory.state import Header, MemoryState, SourceProgress, fingerprint
from senri.memory.tensor import TensorMemory

__all__ = [
    "MEMORIES",
    "Header",
    "LayerState",
    "Memory",
    "MemoryBranch",
    "MemoryConfig",
    "MemoryInputs",
    "MemoryState",
    "MemoryTokens",
    "SVDCleaningStats",
    "SourceProgress",
    "TensorMemory",
    "build_memory",
    "clean_matrix",
    "fingerprint",
    "state_bytes",
]
