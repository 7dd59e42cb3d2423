"""InputWhitening: what it makes of states, what sees it, and where it is refused."""

import copy

import pytest
import torch

from senri.errors import SenriError
from senri.memory import MemoryBranch, MemoryConfig
from senri.memory.input_starts import start_from_whitening
from senri.memory.input_whitening import InputWhitening
from senri.memory.shared_read import SharedReader

HIDDEN = 12
DELTA = {
    "combine": "add", "rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token",
    "projections": "own", "short_convolution": 3, "convolution_gates": True, "learned_write_strength": True,
    "write_strength": 0.4,
}  # fmt: skip


def states(count=4000):
    """States whose directions are of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator)).Q
    return torch.randn(count, HIDDEN, generator=generator) * torch.logspace(-1, 0.5, HIDDEN) @ turn + 3.0


def moments(x):
    return x.mean(0), torch.cov(x.T, correction=0)


def branch(**changes):
    torch.manual_seed(0)
    return MemoryBranch(MemoryConfig(**{**DELTA, "whitened_inputs": True, **changes}), HIDDEN, 4, 4, 3, 3)


def test_white_states_have_no_mean_and_no_loud_direction():
    whitening, x = InputWhitening(HIDDEN), states()
    assert torch.equal(whitening(x), x)
    whitening.initialise(*moments(x))
    mean, covariance = moments(whitening(x))
    torch.testing.assert_close(mean, torch.zeros(HIDDEN), atol=1e-3, rtol=0)
    torch.testing.assert_close(covariance, torch.eye(HIDDEN), atol=0.05, rtol=0)


def test_a_bfloat16_model_has_the_same_map():
    whitening = InputWhitening(HIDDEN)
    whitening.initialise(*moments(states()))
    assert torch.equal(copy.deepcopy(whitening).bfloat16().weight.float(), whitening.weight)


def test_everything_a_memory_makes_of_states_goes_through_it():
    """Turning the states and undoing it in the whitening changes nothing."""
    x, turn = states(20)[None], torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q
    whitened = branch()
    for parameter in whitened.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    turned = copy.deepcopy(whitened)
    with torch.no_grad():
        turned.inputs.whitening.weight.copy_(whitened.inputs.whitening.weight @ turn)
    out, state = whitened(x, whitened.init_state(1))
    same_out, same_state = turned(x @ turn, turned.init_state(1))
    torch.testing.assert_close(same_out, out, atol=1e-4, rtol=1e-3)
    for name in state:
        torch.testing.assert_close(same_state[name], state[name], atol=1e-4, rtol=1e-3)


def test_the_start_is_the_one_that_projections_of_states_as_they_are_have():
    """Whitening first, or in the projections: the same queries, keys and values."""
    x = states()
    first, folded = branch(), branch(whitened_inputs=False)
    for one in (first, folded):
        start_from_whitening(one.inputs, *moments(x), torch.Generator().manual_seed(1))
    made, _ = first.inputs(x[None, :50], first.init_state(1))
    wanted, _ = folded.inputs(x[None, :50], folded.init_state(1))
    for name in ("q", "k", "v"):
        torch.testing.assert_close(getattr(made, name), getattr(wanted, name), atol=0.1, rtol=0.05)


def test_a_reading_layer_whitens_its_own_states():
    config = MemoryConfig(**{**DELTA, "whitened_inputs": True, "state": "shared"})
    reader, x = SharedReader(config, HIDDEN, 4, 4, 3, 3), states()
    start_from_whitening(reader.inputs, *moments(x), torch.Generator().manual_seed(1))
    q, _ = reader.inputs(x[None], reader.init_state(1), None)
    covariance = torch.cov(q.transpose(1, 2).flatten(2)[0].T)
    torch.testing.assert_close(covariance, torch.eye(HIDDEN), atol=0.05, rtol=0)


def test_shared_projections_have_nothing_to_whiten():
    with pytest.raises(SenriError, match="whitened_inputs needs projections of the memory's own"):
        MemoryConfig(whitened_inputs=True)
