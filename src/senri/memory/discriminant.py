"""Linear discriminants: a map under which vectors of one class are alike and those of different classes are not."""

import torch
from torch import Tensor

from senri.errors import SenriError
from senri.memory.calibration import whitening_matrix


@torch.no_grad()
def discriminant_map(vectors: Tensor, classes: Tensor) -> Tensor:
    """Return the map `[size, size]` in float64, its rows from the most telling direction to the least.

    Differences within classes are whitened, so that they are as large in every direction, and the result is turned to
    the directions in which the classes' means differ most (Fisher 1936, "The use of multiple measurements in taxonomic
    problems"). A direction in which means vary by l, where members vary by 1, is scaled by sqrt(l / (1 + l)): what says
    nothing about the class is left out. A class counts by the square root of its size: few tokens make up most of a
    text.

    Args:
        vectors: `[count, size]`.
        classes: `[count]`, a whole number for each.

    Raises:
        SenriError: no class has two members.
    """
    x = vectors.double().cpu()
    _, member_of, sizes = classes.cpu().unique(return_inverse=True, return_counts=True)
    weights = sizes.double().sqrt()
    means = torch.zeros(len(sizes), x.shape[1], dtype=x.dtype).index_add_(0, member_of, x) / sizes.unsqueeze(1)
    inner = x - means[member_of]
    # Of a class of n the sum of squares about its own mean is that of n - 1 members.
    share = (weights / (sizes - 1).clamp(min=1))[member_of] * (sizes > 1)[member_of]
    total = weights[sizes > 1].sum()
    if not total:
        raise SenriError("every class has a single member: discriminants need more text.")
    within = (inner * share.unsqueeze(1)).T @ inner / total
    outer = means - (weights.unsqueeze(1) * means).sum(0) / weights.sum()
    between = (outer * weights.unsqueeze(1)).T @ outer / weights.sum()
    between -= within * (weights / sizes).sum() / weights.sum()  # what means of few members differ by anyhow
    whitening = whitening_matrix(within)
    spread, directions = torch.linalg.eigh(whitening @ between @ whitening)
    spread = spread.clamp(min=0)
    found: Tensor = ((spread / (1 + spread)).sqrt() * directions).T.flip(0) @ whitening
    return found
