"""The processes that share a measurement's work, as accelerate or torchrun started them."""

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """Return accelerate's view of this process: its index, how many there are, and its device.

    Without an accelerator accelerate joins processes on CPU only when it is told to use the CPU.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
