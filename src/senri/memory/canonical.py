"""Canonical correlations: maps under which two views of the same thing are most alike, and different things least."""

import torch
from torch import Tensor

from senri.memory.calibration import whitening_matrix

_LARGEST_CORRELATION = 0.995
"""Canonical correlations are taken to be at most this: a weight must stay finite."""


def canonical_maps(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps of two views `[size, size]` each, in float64: first that of the first view.

    Both views are whitened and turned to their canonical directions (Hotelling 1936, "Relations between two sets of
    variates"). A direction with correlation r is weighted by sqrt(r / (1 - r^2)), so that the product of two mapped
    vectors is, up to a constant and their lengths, the log-likelihood ratio of "the same thing" against "two things"
    (Ioffe 2006, "Probabilistic linear discriminant analysis").

    Args:
        covariance: of both views side by side, `[2 size, 2 size]`.
    """
    size = covariance.shape[0] // 2
    covariance = covariance.double().cpu()
    first, second = whitening_matrix(covariance[:size, :size]), whitening_matrix(covariance[size:, size:])
    left, correlations, right = torch.linalg.svd(first @ covariance[:size, size:] @ second)
    correlations = correlations.clamp(max=_LARGEST_CORRELATION)
    weights = (correlations / (1 - correlations.square())).sqrt().unsqueeze(1)
    return weights * (left.T @ first), weights * (right @ second)
