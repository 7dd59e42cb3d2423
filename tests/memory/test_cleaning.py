"""SVD cleaning keeps the strong directions, and says truly what it kept."""

import dataclasses

import pytest
import torch

from senri.errors import SenriError
from senri.memory import clean_matrix


def with_singular_values(*values, rows=6, columns=5):
    generator = torch.Generator().manual_seed(len(values))
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))[0]
    middle = torch.zeros(rows, columns, dtype=torch.float64)
    middle[range(len(values)), range(len(values))] = torch.tensor(values, dtype=torch.float64)
    return left @ middle @ right


def test_keeps_the_smallest_sufficient_rank():
    matrix = torch.stack([with_singular_values(3, 2, 1), with_singular_values(1, 1, 1, 1, 1)]).float()[None]
    cleaned, stats = clean_matrix(matrix, 0.9)
    assert stats.original_rank_per_head.tolist() == [[3, 5]]
    # 9 + 4 of 14 is 0.93; five equal directions all are needed for 0.9
    assert stats.retained_rank_per_head.tolist() == [[2, 5]]
    assert (stats.original_rank, stats.retained_rank) == (5, 5)
    assert stats.energy_retained == pytest.approx(18 / 19, rel=1e-6)
    assert stats.energy_retained_per_head.tolist()[0] == pytest.approx([13 / 14, 1.0], rel=1e-6)
    torch.testing.assert_close(stats.singular_values_before[0, 0], torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0]))
    assert float(torch.linalg.norm(cleaned[0, 0] - matrix[0, 0])) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(cleaned[0, 1], matrix[0, 1])
    assert cleaned.dtype == torch.float32


def test_an_exactly_sufficient_rank_is_enough():
    _, stats = clean_matrix(torch.eye(2)[None, None], 0.5)
    assert stats.retained_rank == 1


def test_max_rank_and_full_energy():
    matrix = with_singular_values(5, 4, 3, 2)[None, None]
    same, stats = clean_matrix(matrix, 1.0)
    torch.testing.assert_close(same, matrix)
    assert stats.energy_retained == pytest.approx(1.0)
    cleaned, stats = clean_matrix(matrix, 1.0, max_rank=2)
    assert stats.retained_rank == int(torch.linalg.matrix_rank(cleaned)) == 2
    assert stats.energy_retained == pytest.approx(41 / 54)


def test_empty_memory():
    cleaned, stats = clean_matrix(torch.zeros(1, 2, 4, 4), 0.95)
    assert not cleaned.any()
    assert (stats.original_rank, stats.retained_rank, stats.energy_retained) == (0, 0, 1.0)


def test_stats_are_frozen():
    _, stats = clean_matrix(torch.ones(1, 1, 2, 2), 0.95)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.retained_rank = 0


@pytest.mark.parametrize(
    "threshold,max_rank,message",
    [
        (0.0, None, "energy_threshold is 0.0"),
        (1.5, None, "energy_threshold is 1.5"),
        (float("nan"), None, "energy_threshold is nan"),
        (0.9, 0, "max_rank is 0"),
    ],
)
def test_bad_thresholds(threshold, max_rank, message):
    with pytest.raises(SenriError, match=message):
        clean_matrix(torch.ones(1, 1, 2, 2), threshold, max_rank)


def test_a_memory_that_is_not_finite_is_refused():
    with pytest.raises(SenriError, match="not finite"):
        clean_matrix(torch.full((1, 1, 2, 2), float("nan")), 0.95)
