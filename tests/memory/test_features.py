"""Feature maps: their formulas, widths and signs."""

import pytest
import torch

from senri.memory import MemoryConfig
from senri.memory.features import FEATURE_MAPS, apply_feature_map, feature_width


def config(name, **knobs):
    normaliser = "rmsnorm" if name in ("l2", "silu_l2") else "denominator"
    return MemoryConfig(**{"feature_map": name, "normaliser": normaliser, **knobs})


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_widths_and_dtypes(name):
    x = torch.randn(2, 3, 4, 5)
    out = apply_feature_map(x, config(name))
    assert out.shape == (2, 3, 4, feature_width(5, config(name)))
    unit = apply_feature_map(x, config(name, normaliser="rmsnorm")).norm(dim=-1)
    torch.testing.assert_close(unit, torch.ones_like(unit))


@pytest.mark.parametrize("name", ("elu_plus_one", "dpfp"))
def test_never_negative(name):
    assert (apply_feature_map(torch.randn(1000) * 10, config(name)) >= 0).all()


def test_formulas():
    x = torch.tensor([-1.0, 2.0])
    torch.testing.assert_close(apply_feature_map(x, config("elu_plus_one")), torch.tensor([0.36787944, 3.0]))
    torch.testing.assert_close(apply_feature_map(3 * x, config("l2")), x / 5**0.5)
    silu = torch.tensor([-1 / (1 + torch.e), 2 / (1 + torch.e**-2)])
    torch.testing.assert_close(apply_feature_map(x, config("silu_l2")), silu / silu.norm())


def test_dpfp_by_hand():
    # r = [relu(x), relu(-x)] = [0, 2, 1, 0]; rolled by 1: [0, 0, 2, 1], by 2: [1, 0, 0, 2]
    x = torch.tensor([-1.0, 2.0])
    assert apply_feature_map(x, config("dpfp", dpfp_order=1)).tolist() == [0, 0, 2, 0]
    assert apply_feature_map(x, config("dpfp", dpfp_order=2)).tolist() == [0, 0, 2, 0, 0, 0, 0, 0]
    assert feature_width(2, config("dpfp", dpfp_order=2)) == 8
    x = torch.tensor([3.0, 2.0])
    assert apply_feature_map(x, config("dpfp", dpfp_order=1)).tolist() == [0, 6, 0, 0]
