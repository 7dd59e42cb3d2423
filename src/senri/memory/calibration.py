"""Closed-form mathematics of calibration: running moments, whitening, and the gate that fits best."""

import torch
from torch import Tensor

from senri.errors import SenriError

EIGENVALUE_FLOOR = 1e-4
"""Smallest eigenvalue that whitening inverts, as a share of the largest: below it a sample's directions are noise."""


class RunningMoments:
    """Mean and covariance of a stream of vectors in float64, whatever the size of the stream (Chan et al. 1979).

    Works on `[..., vectors, dim]`: leading dimensions (heads) each have their own moments.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Add `[..., vectors, dim]`."""
        x = vectors.double()
        added = x.shape[-2]
        if added == 0:
            return
        mean = x.mean(dim=-2)
        centred = x - mean.unsqueeze(-2)
        scatter = centred.transpose(-1, -2) @ centred
        if self._mean is None or self._scatter is None:
            self._mean, self._scatter, self.count = mean, scatter, added
            return
        total = self.count + added
        difference = mean - self._mean
        between = difference.unsqueeze(-1) * difference.unsqueeze(-2) * (self.count * added / total)
        self._scatter = self._scatter + scatter + between
        self._mean = self._mean + difference * (added / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """The mean, `[..., dim]`."""
        return self._need(self._mean)

    @property
    def covariance(self) -> Tensor:
        """The covariance (divided by the count), `[..., dim, dim]`."""
        covariance: Tensor = self._need(self._scatter) / self.count
        return covariance

    def _need(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise SenriError("calibration saw no tokens: give it a text that is not empty.")
        return value


def whitening_matrix(covariance: Tensor, relative_floor: float = EIGENVALUE_FLOOR) -> Tensor:
    """Return the symmetric (ZCA) W with W C W = identity: `[..., dim, dim]` (Kessy et al. 2018, section 3).

    Args:
        covariance: `[..., dim, dim]`.
        relative_floor: eigenvalues below this share of the largest are raised to it.
    """
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    largest = eigenvalues[..., -1:].clamp(min=torch.finfo(covariance.dtype).tiny)
    scale = torch.maximum(eigenvalues, largest * relative_floor).rsqrt()
    whitening: Tensor = (vectors * scale.unsqueeze(-2)) @ vectors.transpose(-1, -2)
    return whitening


class GateLeastSquares:
    """The gate g per head that minimises the sum of ||target - (g memory + (1 - g) window)||^2 over a stream.

    With d = memory - window the minimum lies at g = <target - window, d> / <d, d>; only these two sums are kept.
    """

    def __init__(self) -> None:
        self._along: Tensor | None = None
        self._length: Tensor | None = None

    @torch.no_grad()
    def update(self, target: Tensor, window: Tensor, memory: Tensor) -> None:
        """Add outputs `[batch, heads, seq, dim]`."""
        difference = memory.double() - window.double()
        along = ((target.double() - window.double()) * difference).sum(dim=(0, 2, 3))
        length = difference.square().sum(dim=(0, 2, 3))
        self._along = along if self._along is None else self._along + along
        self._length = length if self._length is None else self._length + length

    def solve(self, low: float, high: float) -> Tensor:
        """Return g `[heads]`, float64, clamped to `[low, high]`; `low` where memory and window never differed.

        Raises:
            SenriError: nothing was added.
        """
        if self._along is None or self._length is None:
            raise SenriError("calibration of the gate saw no tokens: give it a text that is not empty.")
        differed = self._length > 0
        return torch.where(differed, self._along / torch.where(differed, self._length, 1.0), low).clamp(low, high)
