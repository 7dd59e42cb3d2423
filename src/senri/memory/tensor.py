"""TensorMemory: per head one matrix M of outer products phi(k) v^T, or several banks of them written in turn."""

from dataclasses import dataclass

from torch import Tensor

from senri.memory.matrix import MatrixMemory
from senri.memory.typed import check_at_least


@dataclass
class BankOptions:
    """Options of `TensorMemory`.

    Args:
        num_memory_banks: matrices per head; 1 for a single memory.
        segments_per_bank: finished segments after which the next bank is written; after the last, the first again.
    """

    num_memory_banks: int = 1
    segments_per_bank: int = 4

    def __post_init__(self) -> None:
        check_at_least("memory.options", vars(self), 1)


class TensorMemory(MatrixMemory):
    """The associative matrix memory of Infini-attention (Munkhdalai et al. 2024) with all its knobs.

    With banks every bank is written for `segments_per_bank` segments in turn, and a read sees the sum of all. Under the
    linear rule that is the single memory, kept in pieces that can be looked at and cleaned apart; under the delta rules
    a write corrects only what its own bank holds. State and parameters: see `MatrixMemory`.
    """

    Options = BankOptions
    options: BankOptions

    @property
    def parts(self) -> int | None:
        """The banks; None for a single memory."""
        banks = self.options.num_memory_banks
        return banks if banks > 1 else None

    @property
    def takes_turns(self) -> bool:
        """Banks do."""
        return self.parts is not None

    def turn_of(self, segment: Tensor) -> Tensor:
        """Return how many banks were filled, which modulo the banks is the one to write."""
        return segment.div(self.options.segments_per_bank, rounding_mode="floor")
