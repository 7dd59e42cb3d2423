"""Fixed-size memories: the interface, one memory a file, the branch of a layer, and the memory of a whole model."""

from senri.memory.base import LayerState, Memory, state_bytes
from senri.memory.branch import MemoryBranch
from senri.memory.calibrated import CalibratedMemory
from senri.memory.cleaning import SVDCleaningStats, clean_matrix
from senri.memory.config import MemoryConfig
from senri.memory.hierarchical import HierarchicalMemory
from senri.memory.inputs import MemoryInputs, MemoryTokens
from senri.memory.least_squares import LeastSquaresMemory
from senri.memory.matrix import MatrixMemory
from senri.memory.multi import MultiMemory
from senri.memory.orthogonal import OrthogonalBasisMemory
from senri.memory.registry import MEMORIES, build_memory, memory_class, resolve_config
from senri.memory.shared_read import SharedReader, SharedWrite
from senri.memory.state import Header, MemoryState, SourceProgress, fingerprint
from senri.memory.tensor import TensorMemory

__all__ = [
    "MEMORIES",
    "CalibratedMemory",
    "Header",
    "HierarchicalMemory",
    "LayerState",
    "LeastSquaresMemory",
    "Memory",
    "MatrixMemory",
    "MemoryBranch",
    "MemoryConfig",
    "MemoryInputs",
    "MemoryState",
    "MemoryTokens",
    "MultiMemory",
    "OrthogonalBasisMemory",
    "SVDCleaningStats",
    "SharedReader",
    "SharedWrite",
    "SourceProgress",
    "TensorMemory",
    "build_memory",
    "clean_matrix",
    "fingerprint",
    "memory_class",
    "resolve_config",
    "state_bytes",
]
