"""Where the inputs of a memory with own projections start: from hidden states, pairs of them, or their tokens."""

import torch
from torch import Tensor

from senri.errors import SenriError
from senri.memory.canonical import canonical_maps
from senri.memory.discriminant import discriminant_map
from senri.memory.inputs import MemoryInputs
from senri.memory.projection_starts import orthogonal_map, repeat_heads, start_projection, start_whitening
from senri.memory.shared_read import QueryInputs

_VALUE_SCALE = 0.5
"""Standard deviation of the values' entries at the start, given whitened hidden states."""

_VALUE_SIZE = 0.8
"""Root mean square of values at a start that looks at tokens."""


@torch.no_grad()
def start_from_whitening(
    inputs: MemoryInputs | QueryInputs, mean: Tensor, covariance: Tensor, generator: torch.Generator | None = None
) -> None:
    """Start own projections as random orthogonal maps of the whitened hidden states; q and k use the same map.

    Queries then find the keys of equal tokens, and no direction that all tokens share drowns the others; neither
    does one that all values share.

    Args:
        inputs: what is set, in place; queries alone of a layer that reads another's memory.
        mean: mean of the layer's inputs, `[hidden_size]`.
        covariance: their covariance, `[hidden_size, hidden_size]`.
        generator: of the random maps (CPU); for queries alone as it was before the writing layer's were made.

    Raises:
        SenriError: projections are shared, or a shape does not fit.
    """
    if inputs.config.projections != "own":
        raise SenriError("shared projections belong to the layer: set memory.projections 'own' to initialise them.")
    size = inputs.q_proj.in_features
    if mean.shape != (size,) or covariance.shape != (size, size):
        raise SenriError(
            f"mean and covariance have shapes {tuple(mean.shape)} and {tuple(covariance.shape)}, "
            f"but hidden_size is {size}."
        )
    whitening, mean = start_whitening(inputs.whitening, mean, covariance)
    keys = orthogonal_map(inputs.num_key_value_heads * inputs.convolved_dim, size, generator) @ whitening
    start_projection(inputs.q_proj, repeat_heads(keys, inputs.convolved_dim, inputs.num_heads), mean)
    if inputs.config.convolution_dense:
        _start_dense(inputs, whitening, mean, generator)
    if isinstance(inputs, QueryInputs):
        return
    start_projection(inputs.k_proj, keys, mean)
    if inputs.config.combine != "copy":
        values = orthogonal_map(inputs.num_key_value_heads * inputs.value_dim, size, generator) @ whitening
        start_projection(inputs.v_proj, values * _VALUE_SCALE, mean)


def _start_dense(
    inputs: MemoryInputs | QueryInputs, whitening: Tensor, mean: Tensor, generator: torch.Generator | None
) -> None:
    """Let dense channels of keys and queries begin as the same random map of the token itself and of the one that asks,
    and hear nothing of its neighbours and of the mean.
    """
    size, queries = inputs.q_proj.in_features, inputs.conv_q.dense
    assert queries is not None
    own = orthogonal_map(inputs.num_key_value_heads * queries.channels, size, generator) @ whitening
    sides = [(queries, repeat_heads(own, queries.channels, inputs.num_heads), mean)]
    if isinstance(inputs, MemoryInputs):
        keys = inputs.conv_k.dense
        assert keys is not None
        tokens = keys.states.in_features // size  # the one before, itself, the next
        around = torch.nn.functional.pad(own, (size, (tokens - 2) * size))
        sides.append((keys, around, mean.repeat(tokens)))
    for dense, weight, middle in sides:
        start_projection(dense.states, weight, middle)
        if dense.mean is not None:
            dense.mean.zero_()


@torch.no_grad()
def start_from_pairs(
    inputs: MemoryInputs, mean: Tensor, covariance: Tensor, generator: torch.Generator | None = None
) -> None:
    """Start own queries and keys so that a token's state in a question finds its state in a text.

    The same token has another state after other tokens. Keys map the states of a text, queries those of the same
    tokens after little context, to where both are most alike (`canonical_maps`), turned at random into heads.

    Args:
        inputs: what is set, in place.
        mean: of pairs of states, as projections see them (`MemoryInputs.seen`), the text's first, side by side,
            `[2 hidden_size]`.
        covariance: their covariance, `[2 hidden_size, 2 hidden_size]`.
        generator: of the random turn (CPU).
    """
    size = inputs.hidden_size
    turn = orthogonal_map(inputs.num_key_value_heads * inputs.convolved_dim, size, generator)
    keys, queries = (turn @ part for part in canonical_maps(covariance))
    start_projection(inputs.k_proj, keys, mean[:size])
    start_projection(inputs.q_proj, repeat_heads(queries, inputs.convolved_dim, inputs.num_heads), mean[size:])


@torch.no_grad()
def start_values(
    inputs: MemoryInputs, states: Tensor, tokens: Tensor, generator: torch.Generator | None = None
) -> None:
    """Start own values so that they say which token they are of, and little of what stands around it.

    A layer's states are about what comes next more than about the token itself: of two digits in one number, they
    are more alike than those of one digit in two numbers. `discriminant_map` turns that round.

    Args:
        inputs: what is set, in place.
        states: of many tokens of text, as projections see them (`MemoryInputs.seen`), `[tokens, hidden_size]`.
        tokens: which each is, `[tokens]`.
        generator: of the random turn that lets all heads share the telling directions (CPU).
    """
    found = discriminant_map(states, tokens)[: inputs.num_key_value_heads * inputs.value_dim]
    turn = orthogonal_map(inputs.num_key_value_heads * inputs.value_dim, len(found), generator)
    mean = states.double().mean(0).cpu()
    values = turn @ found
    size = ((states.double().cpu() - mean) @ values.T).square().mean().sqrt()
    start_projection(inputs.v_proj, values * (_VALUE_SIZE / size), mean)
