"""SVD cleaning: keep the strongest singular directions of a memory matrix and drop the rest as noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from senri.errors import SenriError


@dataclass(frozen=True)
class SVDCleaningStats:
    """What a cleaning found and kept.

    Attributes:
        original_rank: largest numerical rank of any head before.
        retained_rank: largest rank of any head after.
        energy_retained: kept share of all heads' squared singular values, in [0, 1]; 1 for an empty memory.
        singular_values_before: `[batch, heads, min(key, value)]`, descending.
        original_rank_per_head: `[batch, heads]`, int64.
        retained_rank_per_head: `[batch, heads]`, int64.
        energy_retained_per_head: `[batch, heads]`.
    """

    original_rank: int
    retained_rank: int
    energy_retained: float
    singular_values_before: Tensor
    original_rank_per_head: Tensor
    retained_rank_per_head: Tensor
    energy_retained_per_head: Tensor


@torch.no_grad()
def clean_matrix(
    matrix: Tensor, energy_threshold: float, max_rank: int | None = None
) -> tuple[Tensor, SVDCleaningStats]:
    """Replace every `[..., key, value]` matrix by its best approximation of the smallest sufficient rank.

    The kept rank r is the smallest whose squared singular values sum to `energy_threshold` of the whole, at most
    `max_rank` (truncated SVD: Eckart and Young 1936). Computed in float64, returned in the matrix's dtype without
    gradient.

    Raises:
        SenriError: `energy_threshold` outside (0, 1], `max_rank` below 1, or a matrix that is not finite.
    """
    if not 0.0 < energy_threshold <= 1.0:
        raise SenriError(f"energy_threshold is {energy_threshold}, but it must be above 0 and at most 1.")
    if max_rank is not None and max_rank < 1:
        raise SenriError(f"max_rank is {max_rank}, but it must be at least 1, or None for no limit.")
    if not bool(torch.isfinite(matrix).all()):
        raise SenriError("the memory holds values that are not finite and cannot be cleaned: reset it.")
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    energy = values.square()
    total = energy.sum(dim=-1, keepdim=True)
    before = energy.cumsum(dim=-1) - energy
    kept = (before < energy_threshold * total) & (values > 0)
    if max_rank is not None:
        kept[..., max_rank:] = False
    cleaned = (left * (values * kept).unsqueeze(-2)) @ right
    # singular values below this are rounding of the matrix's own dtype, not content
    floor = values[..., :1] * torch.finfo(matrix.dtype).eps * max(matrix.shape[-2:])
    original, retained = (values > floor).sum(dim=-1), kept.sum(dim=-1)
    kept_energy = (energy * kept).sum(dim=-1)
    whole = float(total.sum())
    stats = SVDCleaningStats(
        original_rank=_largest(original),
        retained_rank=_largest(torch.minimum(original, retained)),
        energy_retained=float(kept_energy.sum()) / whole if whole > 0 else 1.0,
        singular_values_before=values.to(matrix.dtype),
        original_rank_per_head=original,
        retained_rank_per_head=torch.minimum(original, retained),
        energy_retained_per_head=torch.where(
            total.squeeze(-1) > 0, kept_energy / total.squeeze(-1).clamp(min=torch.finfo(torch.float64).tiny), 1.0
        ),
    )
    return cleaned.to(matrix.dtype), stats


def _largest(ranks: Tensor) -> int:
    """Return the largest rank; 0 where there is no matrix, as in a sparse memory that nothing was written to."""
    return int(ranks.max()) if ranks.numel() else 0
