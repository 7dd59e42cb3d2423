"""Calibration mathematics against direct computation."""

import pytest
import torch

from senri.errors import SenriError
from senri.memory.calibration import GateLeastSquares, RunningMoments, whitening_matrix


def samples(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[-1], shape[-1], generator=generator, dtype=torch.float64)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) @ mixing + 1000.0


def test_running_moments_equal_those_of_the_whole():
    x = samples(3, 50, 4)
    moments = RunningMoments()
    for piece in (x[:, :7], x[:, 7:8], x[:, 8:8], x[:, 8:]):
        moments.update(piece)
    assert moments.count == 50
    torch.testing.assert_close(moments.mean, x.mean(1))
    wanted = torch.stack([torch.cov(head.T, correction=0) for head in x])
    torch.testing.assert_close(moments.covariance, wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(SenriError, match="no tokens"):
        _ = RunningMoments().mean


def test_whitening_makes_the_covariance_the_identity():
    x = samples(2, 200, 4)
    moments = RunningMoments()
    moments.update(x)
    whitening = whitening_matrix(moments.covariance, relative_floor=1e-12)
    white = (x - moments.mean[:, None]) @ whitening
    torch.testing.assert_close(torch.einsum("hti,htj->hij", white, white) / 200, torch.eye(4).double().expand(2, 4, 4))
    torch.testing.assert_close(whitening, whitening.transpose(-1, -2))


def test_whitening_does_not_blow_up_flat_directions():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    whitening = whitening_matrix(covariance, relative_floor=0.01)
    torch.testing.assert_close(whitening.diagonal(), torch.tensor([0.5, 1.0, 5.0], dtype=torch.float64))
    assert whitening_matrix(torch.zeros(3, 3)).isfinite().all()


def solved(target, window, memory, low=0.0, high=1.0):
    gate = GateLeastSquares()
    gate.update(target, window, memory)
    return gate.solve(low, high)


def test_gate_is_the_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    window, memory, noise = (torch.randn(2, 3, 10, 4, generator=generator) for _ in range(3))
    share = torch.tensor([0.2, 0.7, 0.5]).view(1, 3, 1, 1)
    exact = solved(share * memory + (1 - share) * window, window, memory)
    torch.testing.assert_close(exact, share.flatten().double())

    target, fitted, gate = noise, None, GateLeastSquares()
    for piece in (slice(0, 3), slice(3, 10)):
        gate.update(target[:, :, piece], window[:, :, piece], memory[:, :, piece])
    fitted = gate.solve(-10.0, 10.0)

    def loss(g):
        g = g.view(1, 3, 1, 1)
        return (target - (g * memory + (1 - g) * window)).square().sum(dim=(0, 2, 3))

    assert (loss(fitted) <= loss(fitted + 0.01)).all()
    assert (loss(fitted) <= loss(fitted - 0.01)).all()


def test_gate_is_clamped_and_closed_where_nothing_differs():
    window = torch.ones(1, 2, 3, 4)
    memory = torch.stack([window[:, 0], 2 * window[:, 1]], dim=1)
    assert solved(9 * window, window, memory, low=0.1, high=0.8).tolist() == pytest.approx([0.1, 0.8])
    with pytest.raises(SenriError, match="no tokens"):
        GateLeastSquares().solve(0.0, 1.0)
