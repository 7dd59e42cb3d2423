"""The bridge to flash-linear-attention, against stand-ins that keep its contract: layout, logs, arguments."""

import sys
from types import ModuleType

import pytest
import torch

from senri import ops
from senri.ops import fla_kernels, naive


def kernel(operation, takes_beta, takes_decay):
    """A stand-in with fla's signature: `[batch, seq, heads, dim]`, g the log of the decay, a keyword scale."""

    def run(q, k, v, *, scale, initial_state, output_final_state, g=None, beta=None):
        assert scale == 1.0
        assert output_final_state
        assert (beta is not None) == takes_beta
        assert (g is not None) == takes_decay
        strengths = ({"beta": beta.mT} if takes_beta else {}) | ({"decay": g.exp().mT} if takes_decay else {})
        turned = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out, state = getattr(naive, operation)(*turned, initial_state, **strengths)
        return out.transpose(1, 2), state

    return run


@pytest.fixture
def fake_fla(monkeypatch):
    parts = {
        "fla": {},
        "fla.ops": {},
        "fla.ops.simple_gla": {"chunk_simple_gla": kernel("linear_attention", False, True)},
        "fla.ops.delta_rule": {"chunk_delta_rule": kernel("delta_rule", True, False)},
        "fla.ops.gated_delta_rule": {"chunk_gated_delta_rule": kernel("gated_delta_rule", True, True)},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("with_beta", [False, True])
@pytest.mark.parametrize("operation", ["linear_attention", "gated_delta_rule"])
def test_bridge_keeps_layout_and_arguments(operation, with_beta, decayed, fake_fla, make_case, assert_close):
    leaves = make_case(operation, 20, dtype=torch.float32).leaves
    tensors = [leaves[name] for name in ("q", "k", "v", "state")]
    beta, decay = leaves["beta"] if with_beta else None, leaves["decay"] if decayed else None
    want = getattr(naive, operation)(*tensors, beta=beta, decay=decay)
    got = getattr(fla_kernels, operation)(*tensors, beta, decay)
    assert_close("out", want[0], got[0], 1e-5)
    assert_close("state", want[1], got[1], 1e-5)


class OnCuda(torch.Tensor):
    """A CPU tensor that says it is on CUDA: the choice of the form looks at nothing else of the device."""

    @property
    def is_cuda(self):
        return True


def choice(monkeypatch, installed=True, dtype=torch.bfloat16, group=1, key_dim=8, inclusive=True, erase=None):
    monkeypatch.setattr(fla_kernels, "installed", lambda: installed)
    q = torch.ones(1, 2 * group, 4, key_dim, dtype=dtype).as_subclass(OnCuda)
    k = torch.ones(1, 2, 4, key_dim, dtype=dtype)
    return fla_kernels.apply_to(q, k, k, torch.ones(1, 2, 4), erase, inclusive)


def test_kernels_are_chosen_only_where_they_mean_the_same(monkeypatch):
    assert choice(monkeypatch)
    assert choice(monkeypatch, dtype=torch.float16)
    assert not choice(monkeypatch, installed=False)
    assert not choice(monkeypatch, dtype=torch.float32)
    assert not choice(monkeypatch, group=2)
    assert not choice(monkeypatch, key_dim=512)
    assert not choice(monkeypatch, inclusive=False)
    assert not choice(monkeypatch, erase=torch.ones(1, 2, 4))


def test_cpu_never_needs_fla(monkeypatch, make_case):
    monkeypatch.setattr(fla_kernels, "installed", lambda: True)
    monkeypatch.setitem(sys.modules, "fla", None)
    leaves = make_case("gated_delta_rule", 20, dtype=torch.bfloat16).leaves
    del leaves["erase"]
    ops.gated_delta_rule(**leaves)


@pytest.mark.skipif(not (torch.cuda.is_available() and fla_kernels.installed()), reason="needs CUDA and fla")
@pytest.mark.parametrize("operation", ["linear_attention", "delta_rule", "gated_delta_rule"])
def test_kernels_equal_naive_on_cuda(operation, make_case, assert_close):
    leaves = make_case(operation, 200, key_dim=64, value_dim=64, dtype=torch.bfloat16).leaves
    leaves.pop("erase", None)
    leaves = {name: leaf.cuda() for name, leaf in leaves.items()}
    want, got = getattr(naive, operation)(**leaves), getattr(ops, operation)(**leaves)
    for name, reference, tensor in zip(("out", "state"), want, got, strict=True):
        assert_close(name, reference, tensor, 2e-2)  # bfloat16 products inside the kernels
