"""Senri: a memory of fixed size for small pretrained language models.

Importing it registers the `senri` architecture with transformers' Auto classes.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("senri")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

from senri.conversion import convert  # noqa: E402  (submodules read the version)
from senri.errors import SenriError  # noqa: E402
from senri.memory import MemoryConfig, MemoryState, TensorMemory  # noqa: E402
from senri.models import SenriConfig, SenriForCausalLM, SenriModel, Session  # noqa: E402

__all__ = [
    "MemoryConfig",
    "MemoryState",
    "SenriConfig",
    "SenriError",
    "SenriForCausalLM",
    "SenriModel",
    "Session",
    "TensorMemory",
    "__version__",
    "convert",
]
