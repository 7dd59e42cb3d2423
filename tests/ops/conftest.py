"""What the tests of ops share: a comparison that names the tensor, and random inputs of the recurrence."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Case:
    """Leaves of one recurrence (`q, k, v, state, beta, decay, erase`) and the operation that takes some of them."""

    operation: str
    leaves: dict[str, Tensor]
    inclusive: bool = True

    def run(self, form: object, **options: object) -> dict[str, Tensor]:
        """Outputs, final state and the gradient of every leaf, by name."""
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in self.leaves.items()}
        out, state = self._call(form, leaves, **options)
        # Both results enter through functions of their own, so that no two gradients can be mistaken for each other.
        loss = out.square().sum() + state.sin().sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        return {"out": out, "state": state} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}

    def run_stepped(self, form: object) -> dict[str, Tensor]:
        """As `run`, one token a call."""
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in self.leaves.items()}
        state, outs = leaves["state"], []
        for token in range(leaves["k"].shape[2]):
            piece = {name: leaf[:, :, token : token + 1] for name, leaf in leaves.items() if name != "state"}
            out, state = self._call(form, piece | {"state": state})
            outs.append(out)
        out = torch.cat(outs, dim=2)
        grads = torch.autograd.grad(out.square().sum() + state.sin().sum(), list(leaves.values()))
        return {"out": out, "state": state} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}

    def split(self, at: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs before and from token `at`; the second part has no state."""
        tokens = {name: leaf for name, leaf in self.leaves.items() if name != "state"}
        first = {name: leaf[:, :, :at] for name, leaf in tokens.items()} | {"state": self.leaves["state"]}
        return first, {name: leaf[:, :, at:] for name, leaf in tokens.items()}

    def _call(self, form: object, leaves: dict[str, Tensor], **options: object) -> tuple[Tensor, Tensor]:
        return getattr(form, self.operation)(**leaves, inclusive=self.inclusive, **options)


STRENGTHS = {
    "linear_attention": ("beta", "decay"),
    "delta_rule": ("beta", "erase"),
    "gated_delta_rule": ("beta", "decay", "erase"),
}

# Below it errors count as absolute: a gradient that cancels to zero keeps the rounding of its terms.
SMALLEST_NORM = 1e-2


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    def make(
        operation: str,
        seq: int,
        *,
        batch: int = 2,
        heads: int = 2,
        group: int = 1,
        key_dim: int = 8,
        value_dim: int = 5,
        dtype: torch.dtype = torch.float64,
        inclusive: bool = True,
        seed: int = 0,
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def uniform() -> Tensor:
            return torch.rand(batch, heads, seq, generator=generator, dtype=torch.float64)

        leaves = {
            "q": normal(batch, heads * group, seq, key_dim),
            "k": F.normalize(normal(batch, heads, seq, key_dim), dim=-1),
            "v": normal(batch, heads, seq, value_dim),
            "state": normal(batch, heads, key_dim, value_dim),
        }
        # Decays from 1e-6 to 1, most of them near 1.
        strengths = {"beta": uniform(), "decay": 10 ** (-6 * uniform() ** 8), "erase": uniform()}
        leaves |= {name: strengths[name] for name in STRENGTHS[operation]}
        return Case(operation, {name: leaf.to(dtype) for name, leaf in leaves.items()}, inclusive)

    return make


@pytest.fixture(scope="session")
def assert_close() -> Callable[[str, Tensor, Tensor, float], None]:
    def check(name: str, reference: Tensor, got: Tensor, ratio: float) -> None:
        """Assert that |got - reference| <= ratio * |reference|, in the Euclidean norm."""
        assert got.shape == reference.shape, f"{name}: {tuple(got.shape)} is not {tuple(reference.shape)}"
        assert got.isfinite().all(), f"{name} is not finite"
        error, size = (got.double() - reference.double()).norm().item(), reference.double().norm().item()
        error /= max(size, SMALLEST_NORM)
        assert error <= ratio, f"{name}: relative error {error:.2e} > {ratio:.0e}"

    return check


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
