"""Tokens that are written together: a loop in the words of the definition, and what it is for."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from senri.errors import SenriError
from senri.memory import LeastSquaresMemory, TensorMemory
from senri.memory.least_squares import Held

LENGTH = 4


def build(**knobs):
    memory = LeastSquaresMemory(12, 4, 2, key_dim=6, value_dim=5, **{"segment_length": LENGTH, **knobs}).double()
    torch.nn.init.normal_(memory.norm_weight)
    return memory


def slow(memory, q, k, v, beta):
    """One row and head after the other, one token after the other; a segment by the inverse in the definition."""
    unit = torch.nn.functional.normalize
    out, matrices = torch.zeros(*q.shape[:-1], memory.value_dim, dtype=q.dtype), []
    for row, head in itertools.product(range(len(k)), range(memory.num_key_value_heads)):
        matrix, waiting = torch.zeros(k.shape[-1], v.shape[-1], dtype=q.dtype), []
        for token in range(k.shape[2]):
            for query_head in range(2 * head, 2 * head + 2):
                read = unit(q[row, query_head, token], dim=-1) @ matrix
                scale = (read.square().mean() + memory.config.eps).rsqrt()
                out[row, query_head, token] = read * scale * memory.norm_weight[query_head]
            waiting.append(token)
            if len(waiting) == LENGTH:
                keys, values, b = unit(k[row, head, waiting], dim=-1), v[row, head, waiting], beta[row, head, waiting]
                inverse = torch.linalg.inv(keys @ keys.T + torch.diag((1 - b) / b + memory.options.ridge))
                matrix, waiting = matrix + keys.T @ inverse @ (values - keys @ matrix), []
        matrices.append(matrix)
    return out, torch.stack(matrices).unflatten(0, (len(k), -1))


@pytest.mark.parametrize(("seq", "ridge"), [(3, 0.0), (4, 0.0), (14, 0.0), (14, 1.5)])
def test_values_state_and_gradients_equal_the_loop(seq, ridge, inputs, empty):
    memory = build(ridge=ridge)
    tensors = inputs(memory, batch=2, seq=seq)
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    out, state = memory.scan(state=empty(memory, 2), **tensors)
    wanted, matrix = slow(memory, **tensors)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(state["M"], matrix)
    left = seq % LENGTH
    assert state["count"].tolist() == [seq, seq]
    torch.testing.assert_close(state["pending_v"][:, :, :left], tensors["v"][:, :, seq - left :])
    assert not state["pending_beta"][:, :, left:].any()
    if seq > LENGTH:
        gradients = [torch.autograd.grad(some.square().sum(), leaves, retain_graph=True) for some in (out, wanted)]
        torch.testing.assert_close(*gradients)


@given(tokens=st.integers(1, 9), ridge=st.floats(0, 10), seed=st.integers(0, 10**6))
def test_what_is_written_is_the_least_of_what_the_definition_says(tokens, ridge, seed):
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    before, keys, values = random(1, 1, 6, 3), random(1, 1, tokens, 6), random(1, 1, tokens, 3)
    strength = torch.rand(1, 1, tokens, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    after = build(ridge=ridge).written(Held(before, None), keys, values, strength).matrix.requires_grad_()
    missed = (values - keys @ after).square().sum(-1)
    total = (after - before).square().sum() + (missed / ((1 - strength) / strength + ridge)).sum()
    (slope,) = torch.autograd.grad(total, after)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-7, rtol=0)


def test_of_one_token_it_is_the_delta_rule(inputs, empty):
    memory = build(segment_length=1)
    tensors = inputs(memory, batch=2, seq=7)
    config = {"rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token"}
    delta = TensorMemory(12, 4, 2, key_dim=6, value_dim=5, **config).double()
    delta.load_state_dict(memory.state_dict())
    out, state = memory.scan(state=empty(memory, 2), **tensors)
    wanted, wanted_state = delta.scan(state=empty(delta, 2), **tensors)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(state["M"], wanted_state["M"])


def test_the_order_within_a_segment_does_not_matter(inputs, empty):
    memory = build()
    tensors = {name: inputs(memory, batch=1, seq=LENGTH)[name] for name in ("k", "v", "beta")}
    turned = {name: tensor.flip(2) for name, tensor in tensors.items()}
    states = [memory.write(state=empty(memory, 1), **some)["M"] for some in (tensors, turned)]
    torch.testing.assert_close(*states)


def test_a_query_for_what_tokens_share_and_one_of_them_reads_that_one():
    """The delta rule reads the last one written, whichever is asked for."""
    tokens, width = 16, 32
    own = torch.eye(width, dtype=torch.float64)
    keys = (own[:1] + own[1 : tokens + 1])[None, None]  # half of each key is what all have
    asked = own[:1] + 0.3 * own[1 : tokens + 1]
    values = torch.eye(tokens, dtype=torch.float64)[None, None]
    sizes, knobs = (width, 1), {"key_dim": width, "value_dim": tokens, "eps": 1e-6}
    together = LeastSquaresMemory(*sizes, segment_length=tokens, **knobs).double()
    one_by_one = TensorMemory(
        *sizes, rule="delta", feature_map="l2", normaliser="rmsnorm", granularity="token", **knobs
    ).double()
    found = []
    for memory in (together, one_by_one):
        state = {name: x.double() if x.is_floating_point() else x for name, x in memory.init_state(1).items()}
        strength = torch.full((1, 1, tokens), 0.9, dtype=torch.float64)
        state = memory.write(keys, values, state, strength)
        found.append(memory.read(asked[None, None], state)[0, 0].argmax(-1))
    assert found[0].tolist() == [*range(tokens)]
    assert (found[1] == tokens - 1).float().mean() > 0.5


def test_a_segment_is_read_when_it_is_full(inputs, empty):
    memory = build()
    tensors = inputs(memory, batch=1, seq=LENGTH)
    early = {name: x[:, :, :-1] for name, x in tensors.items()}
    _, state = memory.scan(state=empty(memory, 1), **early)
    assert not memory.read(tensors["q"], state).any()
    _, state = memory.scan(state=state, **{name: x[:, :, -1:] for name, x in tensors.items()})
    assert memory.read(tensors["q"], state).any() and not state["pending_k"].any()


def test_with_a_sketch_of_all_directions_segments_are_as_good_as_written_together(inputs, empty):
    tensors = inputs(build(), batch=2, seq=5 * LENGTH)
    for ridge in (0.0, 0.7):
        sketched, whole = build(ridge=ridge, sketch=6), build(ridge=ridge, segment_length=5 * LENGTH)
        states = [memory.scan(state=empty(memory, 2), **tensors)[1] for memory in (sketched, whole)]
        torch.testing.assert_close(states[0]["M"], states[1]["M"])
        apart = build(ridge=ridge).scan(state=empty(build(), 2), **tensors)[1]
        assert (apart["M"] - states[1]["M"]).abs().max() > 0.1


def test_a_sketch_keeps_the_directions_in_which_most_was_written(empty):
    memory = build(sketch=2)
    keys = torch.eye(6, dtype=torch.float64)[[0, 1, 2, 3]][None, None].expand(1, 2, -1, -1)
    values = torch.ones(1, 2, LENGTH, 5, dtype=torch.float64)
    strength = torch.tensor([0.1, 0.8, 0.2, 0.5], dtype=torch.float64).expand(1, 2, -1)
    state = memory.write(keys, values, empty(memory, 1), strength)
    held = (state["sketch"].mT @ state["sketch"])[0, 0].diagonal()
    torch.testing.assert_close(held, torch.tensor([0, 4.0, 0, 1.0, 0, 0], dtype=torch.float64))  # b / (1 - b)


def test_what_was_written_is_kept_from_what_is_written_later():
    """Two segments whose keys are pairwise alike: the second one spoils what the first one has, but for the sketch."""
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(1, 1, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    first = random(LENGTH, 24)
    keys, values = torch.cat([first, first + 0.5 * random(LENGTH, 24)], dim=2), random(2 * LENGTH, 16)
    missed = []
    for sketch in (0, LENGTH):
        memory = LeastSquaresMemory(24, 1, key_dim=24, value_dim=16, segment_length=LENGTH, sketch=sketch).double()
        state = {name: x.double() if x.is_floating_point() else x for name, x in memory.init_state(1).items()}
        state = memory.write(keys, values, state, torch.full((1, 1, 2 * LENGTH), 0.99, dtype=torch.float64))
        held = torch.nn.functional.normalize(first, dim=-1) @ state["M"]
        missed.append((held - values[:, :, :LENGTH]).square().mean())
    assert missed[1] < 0.05 * missed[0]


def test_a_segment_without_a_strength_above_rounding_is_not_written(inputs, empty):
    """Not in any row: M and sketch stay to the last bit. A row beside one that writes changes by rounding at most."""
    memory = build(sketch=6)
    first, then = (inputs(memory, batch=2, seq=2 * LENGTH) for _ in range(2))
    state = memory.scan(state=empty(memory, 2), **first)[1]
    then["beta"] = torch.full_like(then["beta"], torch.finfo(torch.float64).eps)
    quiet = memory.scan(state=state, **then)[1]
    assert torch.equal(quiet["M"], state["M"]) and torch.equal(quiet["sketch"], state["sketch"])
    assert quiet["count"].tolist() == [4 * LENGTH] * 2
    then["beta"][1, 0, -1] = 0.3
    louder = memory.scan(state=state, **then)[1]
    torch.testing.assert_close(louder["M"][0], state["M"][0])
    assert (louder["M"][1, 0] - state["M"][1, 0]).abs().max() > 0.01


def test_equal_keys_that_are_written_with_all_strength_stay_finite(empty):
    memory = build(write_strength=1.0).float()
    keys, values = torch.ones(1, 2, LENGTH, 6), torch.randn(1, 2, LENGTH, 5)
    state = memory.write(keys, values, memory.init_state(1))
    held = torch.nn.functional.normalize(keys[:, :, :1], dim=-1) @ state["M"]
    torch.testing.assert_close(held, values.mean(2, keepdim=True), atol=1e-2, rtol=1e-2)


def test_a_ridge_keeps_a_query_that_is_off_its_key_from_what_it_cannot_tell_apart(empty):
    """Two keys that differ little: told apart exactly, what a query is off by is read as their difference."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.ones(1, 2, LENGTH, 6) + 0.1 * torch.randn(1, 2, LENGTH, 6, generator=generator)
    values = torch.randn(1, 2, LENGTH, 5, generator=generator)
    strength, sizes = torch.full((1, 2, LENGTH), 0.99), []
    for ridge in (0.0, 1.0):
        memory = build(ridge=ridge).float()
        state = memory.write(keys, values, memory.init_state(1), strength)
        sizes.append(state["M"].norm())
    assert sizes[1] < 0.2 * sizes[0]
    for name in ("ridge", "sketch"):
        with pytest.raises(SenriError, match=rf"memory\.options\.{name} is -1"):
            build(**{name: -1.0 if name == "ridge" else -1})


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("rule", "linear"),
        ("granularity", "token"),
        ("normaliser", "denominator"),
        ("order", "update_then_retrieve"),
        ("scope", "batch"),
    ],
)
def test_what_it_cannot_be_is_refused(knob, value):
    with pytest.raises(SenriError, match=rf"memory\.{knob} is '{value}'.*least_squares"):
        build(**{knob: value}, **({"feature_map": "elu_plus_one"} if value == "denominator" else {}))
