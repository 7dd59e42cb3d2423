"""Feature maps phi: what a memory applies to keys and queries before it writes or reads."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.memory.config import MemoryConfig


def elu_plus_one(x: Tensor, config: MemoryConfig) -> Tensor:
    """ELU(x) + 1, never negative (Katharopoulos et al. 2020, "Transformers are RNNs", eq. 7)."""
    return F.elu(x) + 1.0


def l2(x: Tensor, config: MemoryConfig) -> Tensor:
    """Scale every vector to unit length; zero stays zero."""
    return F.normalize(x, dim=-1, eps=config.eps)


def silu_l2(x: Tensor, config: MemoryConfig) -> Tensor:
    """SiLU, then unit length (Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule", section 3)."""
    return l2(F.silu(x), config)


def dpfp(x: Tensor, config: MemoryConfig) -> Tensor:
    """Deterministic parameter-free projection (Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight
    Programmers", section 5.3): with r = [relu(x), relu(-x)], the products of r with its copies rolled by
    1..`dpfp_order`. `[..., d]` becomes `[..., 2 * d * dpfp_order]`, never negative and sparse.
    """
    halves = torch.cat([F.relu(x), F.relu(-x)], dim=-1)
    return torch.cat([halves * halves.roll(shift, dims=-1) for shift in range(1, config.dpfp_order + 1)], dim=-1)


FEATURE_MAPS: dict[str, Callable[[Tensor, MemoryConfig], Tensor]] = {
    "elu_plus_one": elu_plus_one,
    "l2": l2,
    "silu_l2": silu_l2,
    "dpfp": dpfp,
}
"""The feature maps by the name that `MemoryConfig.feature_map` uses."""


def feature_width(key_dim: int, config: MemoryConfig) -> int:
    """Return how wide phi of a key of `key_dim` numbers is."""
    return 2 * key_dim * config.dpfp_order if config.feature_map == "dpfp" else key_dim


def apply_feature_map(x: Tensor, config: MemoryConfig) -> Tensor:
    """Apply the configured map: `[..., key_dim]` to `[..., feature_width]`.

    With the `rmsnorm` normaliser every map ends in unit length: a delta write then corrects by at most what is there.
    """
    features = FEATURE_MAPS[config.feature_map](x, config)
    return l2(features, config) if config.normaliser == "rmsnorm" else features
