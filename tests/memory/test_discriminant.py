"""Discriminants: what tells classes apart is kept, what only varies within them is left out."""

import pytest
import torch
import torch.nn.functional as F

from senri.errors import SenriError
from senri.memory.discriminant import discriminant_map


def labelled(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors whose classes differ in two directions; two others vary far more and say nothing; all is mixed."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    means = torch.zeros(classes, 4, dtype=torch.float64)
    means[:, :2] = torch.randn(classes, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = torch.tensor([0.2, 0.2, 5.0, 5.0], dtype=torch.float64)
    x = means[labels] + noise * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return x @ mixing + 3, labels


def likeness(vectors: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean cosines of members of one class, and of different ones."""
    x = F.normalize(vectors - vectors.mean(0), dim=-1)
    cosines, same = x @ x.T, labels[:, None] == labels
    same_pair = same & ~torch.eye(len(x), dtype=torch.bool)
    return float(cosines[same_pair].mean()), float(cosines[~same].mean())


def test_members_of_a_class_become_alike_and_others_do_not() -> None:
    found = discriminant_map(*labelled(20_000, 30))
    vectors, labels = labelled(600, 30, seed=1)
    before, after = likeness(vectors, labels), likeness(vectors @ found.T, labels)
    assert after[0] > 0.85 and after[1] < 0.1, (before, after)
    assert before[0] < 0.2


def test_directions_come_in_order_and_those_that_say_nothing_are_left_out() -> None:
    vectors, labels = labelled(50_000, 30)
    mapped = (vectors - vectors.mean(0)) @ discriminant_map(vectors, labels).T
    within = torch.stack([mapped[labels == one].var(0) for one in range(30)]).mean(0)
    between = torch.stack([mapped[labels == one].mean(0) for one in range(30)]).var(0)
    assert (within[:2] > 0.5).all() and (within[:2] < 1.0 + 1e-6).all() and (within[2:] < 0.05).all()
    assert between[0] >= between[1] > 10 * between[2]


def test_a_class_of_one_says_nothing_about_differences_within() -> None:
    with pytest.raises(SenriError, match="single member"):
        discriminant_map(torch.randn(5, 3), torch.arange(5))
    vectors, labels = labelled(2000, 30)
    alone = torch.randn(10, 4, dtype=torch.float64) * 100
    found = discriminant_map(torch.cat([vectors, alone]), torch.cat([labels, 100 + torch.arange(10)]))
    assert found.isfinite().all()


def test_means_that_differ_by_chance_say_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    mapped = vectors @ discriminant_map(vectors, torch.arange(20_000) // 2).T  # pairs of no kinship
    assert mapped.square().mean() < 0.05
