"""Small random inputs for the memory's tests."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from senri.memory import LayerState, TensorMemory

torch.set_num_threads(1)


@pytest.fixture
def inputs() -> Callable[..., dict[str, Tensor]]:
    """Random q, k, v, beta and decay (the last two well inside their ranges) for a memory."""

    def make(memory: TensorMemory, batch: int, seq: int, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        heads = memory.num_key_value_heads
        tensors = {
            "q": normal(batch, memory.num_heads, seq, memory.key_dim),
            "k": normal(batch, heads, seq, memory.key_dim),
            "v": normal(batch, heads, seq, memory.value_dim),
            "beta": 0.2 + 0.6 * torch.rand(batch, heads, seq, generator=generator, dtype=torch.float64),
        }
        if memory.config.rule == "gated_delta":
            tensors["decay"] = 0.8 + 0.2 * torch.rand(batch, heads, seq, generator=generator, dtype=torch.float64)
        return tensors

    return make


@pytest.fixture
def empty() -> Callable[[TensorMemory, int], LayerState]:
    """The memory's empty state in float64."""

    def make(memory: TensorMemory, batch: int) -> LayerState:
        state = memory.init_state(batch)
        return {name: x.double() if x.is_floating_point() else x for name, x in state.items()}

    return make
