"""Where projections of a memory's own start: random orthogonal maps of whitened hidden states."""

import torch
from torch import Tensor, nn

from senri.memory.calibration import whitening_matrix
from senri.memory.input_whitening import InputWhitening


def repeat_heads(weight: Tensor, dim: int, heads: int) -> Tensor:
    """Give every query head the rows of its key head: `[key heads * dim, columns]` to `[heads * dim, columns]`."""
    by_head = weight.view(-1, dim, weight.shape[-1])
    return by_head.repeat_interleave(heads // by_head.shape[0], dim=0).flatten(0, 1)


def start_whitening(seen: InputWhitening | None, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map that whitens what projections see, in float64, and the mean of that.

    Args:
        seen: whitens it already, and is set to do so here; None where projections see hidden states as they are.
        mean: of hidden states.
        covariance: of hidden states.
    """
    if seen is None:
        return whitening_matrix(covariance.double().cpu()), mean
    seen.initialise(mean, covariance)
    return torch.eye(len(mean), dtype=torch.float64), torch.zeros_like(mean)


def start_projection(projection: nn.Linear, weight: Tensor, mean: Tensor) -> None:
    """Set a projection in place to x -> weight (x - mean)."""
    projection.weight.copy_(weight)
    projection.bias.copy_(-(weight @ mean.double().cpu()))


def orthogonal_map(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Return a random float64 `[rows, columns]` matrix whose rows (columns, if they are fewer) are orthonormal."""
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(tall)[0]
    return basis if rows >= columns else basis.transpose(0, 1)
