"""Canonical maps: directions that two views share are kept and weighted, those that they do not share are left out."""

import torch
import torch.nn.functional as F

from senri.memory.canonical import canonical_maps

SIZE = 6


def views(count: int, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of the same vectors: each a mixture of what both share and of noise of its own."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(count, SIZE, generator=generator, dtype=torch.float64)
    mixing = [torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) for _ in range(2)]
    own = [torch.randn(count, SIZE, generator=generator, dtype=torch.float64) * noise for _ in range(2)]
    first, second = ((shared + part) @ mix for part, mix in zip(own, mixing, strict=True))
    return first - first.mean(0), second - second.mean(0)


def test_maps_give_the_correlations_as_weights() -> None:
    noise = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6, 3.2], dtype=torch.float64)
    first, second = views(200000, noise)
    left, right = canonical_maps(torch.cov(torch.cat([first, second], dim=1).T))
    x, y = first @ left.T, second @ right.T
    correlations = 1 / (1 + noise.square())  # of two views s + n with variances 1 and noise^2
    weights = correlations / (1 - correlations.square()).clamp(min=1e-12)
    cross = x.T @ y / len(x)
    # Each direction has variance `weight`, and its own correlation; no direction of one view tells about another's.
    assert torch.allclose(x.square().mean(0)[1:], weights[1:], rtol=0.05)
    assert torch.allclose(cross.diagonal()[1:], (weights * correlations)[1:], rtol=0.05)
    assert (cross - cross.diagonal().diag()).abs().max() < 0.05 * cross.diagonal().max()


def test_the_same_thing_is_found_among_others_better_than_by_whitening_alone() -> None:
    noise = torch.tensor([0.1, 0.1, 5.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    first, second = views(20000, noise)

    def found(left: torch.Tensor, right: torch.Tensor) -> float:
        keys, queries = F.normalize(first[:200] @ left.T, dim=-1), F.normalize(second[:200] @ right.T, dim=-1)
        return float(((queries @ keys.T).argmax(-1) == torch.arange(200)).double().mean())

    joint = torch.cov(torch.cat([first, second], dim=1).T)
    maps = canonical_maps(joint)
    plain = [part / part.norm(dim=1, keepdim=True) for part in maps]
    assert found(*maps) > found(plain[0], plain[1]) + 0.05


def test_equal_views_stay_finite() -> None:
    x = torch.randn(100, SIZE, dtype=torch.float64)
    left, right = canonical_maps(torch.cov(torch.cat([x, x], dim=1).T))
    assert left.isfinite().all() and torch.allclose(left.abs(), right.abs(), atol=1e-6)
