"""naive = recurrent stepped = chunked: outputs, final states and every gradient."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from senri import ops
from senri.errors import SenriError
from senri.ops import chunked, naive, recurrent

OPERATIONS = ["linear_attention", "delta_rule", "gated_delta_rule"]
# Relative; the numbers the library promises.
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}


def compare(assert_close, reference, got, ratio):
    assert reference.keys() == got.keys()
    for name, tensor in reference.items():
        assert_close(name, tensor, got[name], ratio)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_naive_is_the_formula(operation, make_case, assert_close):
    case = make_case(operation, 3, batch=1, heads=1, key_dim=3, value_dim=2)
    x = {name: leaf[0, 0] for name, leaf in case.leaves.items()}
    state, outs = x["state"], []
    for t in range(3):
        decay = x["decay"][t] if "decay" in x else 1.0
        erase = x["erase"][t] if "erase" in x else 0.0
        key = x["k"][t][:, None]
        state = decay * (torch.eye(3) - erase * key @ key.T) @ state + x["beta"][t] * key @ x["v"][t][None]
        outs.append(x["q"][t] @ state)
    got = case.run(naive)
    assert_close("out", torch.stack(outs), got["out"][0, 0], 1e-14)
    assert_close("state", state, got["state"][0, 0], 1e-14)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("inclusive", "group"), [(True, 1), (False, 1), (True, 3), (False, 2)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_recurrent_steps_equal_naive(operation, inclusive, group, dtype, make_case, assert_close):
    case = make_case(operation, 40, group=group, inclusive=inclusive, dtype=dtype)
    compare(assert_close, case.run(naive), case.run_stepped(recurrent), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("seq", "chunk_size"), [(1, 64), (2, 1), (63, 64), (64, 64), (65, 64), (130, 16), (200, 128)])
@pytest.mark.parametrize(("inclusive", "group"), [(True, 1), (False, 3)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_chunked_equals_naive(operation, inclusive, group, seq, chunk_size, dtype, make_case, assert_close):
    case = make_case(operation, seq, group=group, inclusive=inclusive, dtype=dtype)
    compare(assert_close, case.run(naive), case.run(chunked, chunk_size=chunk_size), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_thousand_tokens(operation, dtype, make_case, assert_close):
    case = make_case(operation, 1000, batch=1, dtype=dtype)
    reference = case.run(naive)
    for chunk_size in (7, 64, 128):
        compare(assert_close, reference, case.run(chunked, chunk_size=chunk_size), BOUNDS[dtype])


@settings(max_examples=40, deadline=None)
@given(
    operation=st.sampled_from(OPERATIONS),
    dtype=st.sampled_from(list(BOUNDS)),
    seq=st.integers(1, 200),
    chunk_size=st.integers(1, 128),
    group=st.integers(1, 3),
    inclusive=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_length_and_chunk_size(operation, dtype, seq, chunk_size, group, inclusive, seed, make_case, assert_close):
    case = make_case(operation, seq, batch=1, group=group, inclusive=inclusive, dtype=dtype, seed=seed)
    compare(assert_close, case.run(naive), case.run(chunked, chunk_size=chunk_size), BOUNDS[dtype])


@settings(max_examples=40, deadline=None)
@given(
    operation=st.sampled_from(OPERATIONS),
    cut=st.integers(0, 90),
    chunk_size=st.integers(1, 64),
    inclusive=st.booleans(),
)
def test_cutting_anywhere_changes_nothing(operation, cut, chunk_size, inclusive, make_case, assert_close):
    case = make_case(operation, 90, inclusive=inclusive)
    form = getattr(chunked, operation)
    out, state = form(**case.leaves, inclusive=inclusive, chunk_size=chunk_size)
    first, second = case.split(cut)
    first_out, carried = form(**first, inclusive=inclusive, chunk_size=chunk_size)
    second_out, final = form(**second, state=carried, inclusive=inclusive, chunk_size=chunk_size)
    assert_close("out", out, torch.cat([first_out, second_out], dim=2), 1e-12)
    assert_close("state", state, final, 1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_defaults_are_ones_zeros_and_beta(operation, make_case, assert_close):
    case = make_case(operation, 70)
    q, k, v, beta = (case.leaves[name] for name in ("q", "k", "v", "beta"))
    ones, empty = torch.ones_like(beta), torch.zeros_like(case.leaves["state"])
    for form in (naive, chunked):
        bare = getattr(form, operation)(q, k, v)
        full = {"beta": ones} | ({} if operation == "linear_attention" else {"erase": ones})
        full |= {} if operation == "delta_rule" else {"decay": ones}
        for name, want, got in zip(
            ("out", "state"), getattr(form, operation)(q, k, v, empty, **full), bare, strict=True
        ):
            assert_close(name, want, got, 1e-12)
    if operation != "linear_attention":
        same, other = (getattr(chunked, operation)(q, k, v, beta=beta, erase=erase)[0] for erase in (None, beta))
        assert_close("erase=None", other, same, 1e-14)


@pytest.mark.parametrize("form", [naive, chunked, ops])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_tokens_change_nothing(operation, form, make_case):
    case = make_case(operation, 0, group=2)
    out, state = getattr(form, operation)(**case.leaves)
    assert out.shape == (2, 4, 0, 5)
    assert torch.equal(state, case.leaves["state"])


def test_later_tokens_are_never_seen(make_case):
    for operation, inclusive in itertools.product(OPERATIONS, (True, False)):
        case = make_case(operation, 100, inclusive=inclusive)
        form = getattr(chunked, operation)
        before = form(**case.leaves, inclusive=inclusive)[0]
        changed = {name: leaf.clone() for name, leaf in case.leaves.items()}
        changed["v"][:, :, 50:] += 1.0
        after = form(**changed, inclusive=inclusive)[0]
        first_changed = 50 if inclusive else 51
        assert torch.equal(before[:, :, :first_changed], after[:, :, :first_changed])
        assert not torch.allclose(before[:, :, first_changed], after[:, :, first_changed])


@pytest.mark.parametrize("operation", ["linear_attention", "gated_delta_rule"])
@pytest.mark.parametrize("decay", [1.0, 1e-6, 0.0])
def test_extreme_decays_stay_finite(operation, decay, make_case, assert_close):
    case = make_case(operation, 300, dtype=torch.float32)
    case.leaves["decay"].fill_(decay)
    reference, got = case.run(naive), case.run(chunked)
    for name in ("out", "state", "dq", "dk", "dv", "dstate", "dbeta"):
        assert_close(name, reference[name], got[name], 1e-4)
    assert got["ddecay"].isfinite().all()


def test_a_small_decay_does_not_blur_the_ones_after_it(make_case, assert_close):
    """A running sum of logs would lose 0.9999 behind a thousand times 1e-6."""
    case = make_case("linear_attention", 128, dtype=torch.float32)
    case.leaves["decay"][:, :, :64], case.leaves["decay"][:, :, 64:] = 1e-6, 0.9999
    compare(assert_close, case.run(naive), case.run(chunked, chunk_size=128), 1e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_low_precision_computes_in_float32(operation, make_case, assert_close):
    case = make_case(operation, 100, dtype=torch.bfloat16)
    for form in (naive, chunked):
        out, state = getattr(form, operation)(**case.leaves)
        assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    exact = getattr(naive, operation)(**{name: leaf.float() for name, leaf in case.leaves.items()})[1]
    assert_close("state", exact, state, 1e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_autocast_does_not_reach_the_state(operation, make_case, assert_close):
    case = make_case(operation, 100, dtype=torch.float32)
    want = getattr(chunked, operation)(**case.leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = getattr(chunked, operation)(**case.leaves)
    assert torch.equal(want[0], got[0])
    assert torch.equal(want[1], got[1])


def graph_nodes(root):
    seen, stack = set(), [root]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [parent for parent, _ in node.next_functions]
    return [node.name() for node in seen]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_backward_is_linear_in_the_number_of_chunks(operation, make_case):
    """No chunk may add a node whose backward fills a tensor of the full length (select, slice)."""
    counts = {}
    for chunks in (8, 16, 32):
        case = make_case(operation, chunks * 4, batch=1)
        leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves.items()}
        names = graph_nodes(getattr(chunked, operation)(**leaves, chunk_size=4)[0].grad_fn)
        counts[chunks] = len(names), sum("Select" in name or "Slice" in name for name in names)
    assert counts[32][0] - counts[16][0] == 2 * (counts[16][0] - counts[8][0])
    assert counts[8][1] == counts[16][1] == counts[32][1] <= 8


def test_compiles_without_a_graph_break(make_case, assert_close):
    case = make_case("gated_delta_rule", 40, group=2)
    compiled = torch.compile(chunked.gated_delta_rule, fullgraph=True, backend="eager")
    out, state = compiled(**case.leaves, chunk_size=16)
    want = naive.gated_delta_rule(**case.leaves)
    assert_close("out", want[0], out, 1e-10)
    assert_close("state", want[1], state, 1e-10)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("seq", [1, 100])
def test_exported_operations_equal_naive(operation, seq, make_case, assert_close):
    case = make_case(operation, seq, group=2, inclusive=False)
    compare(assert_close, case.run(naive), case.run(ops), 1e-10)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"q": (1, 3, 4, 8)}, r"q has shape \(1, 3, 4, 8\).*a multiple of 2"),
        ({"q": (1, 2, 4, 7)}, "q has shape"),
        ({"q": (1, 2, 3, 8)}, "q has 3 tokens but k has 4"),
        ({"k": (2, 4, 8)}, r"k has shape \(2, 4, 8\), but it must be \[batch, heads, seq, dim\]"),
        ({"v": (1, 2, 5, 5)}, r"v has shape \(1, 2, 5, 5\), but it must be \[1, 2, 4, 5\]"),
        ({"state": (1, 2, 5, 8)}, r"state has shape \(1, 2, 5, 8\), but it must be \[1, 2, 8, 5\]"),
        ({"beta": (1, 2, 3)}, r"beta has shape \(1, 2, 3\), but it must be \[1, 2, 4\]"),
        ({"decay": (1, 2)}, "decay has shape"),
        ({"erase": (1, 2, 4, 1)}, "erase has shape"),
    ],
)
def test_wrong_shapes_are_named(wrong, message, make_case):
    case = make_case("gated_delta_rule", 4, batch=1)
    leaves = case.leaves | {name: torch.ones(shape) for name, shape in wrong.items()}
    for form in (naive, chunked, ops):
        with pytest.raises(SenriError, match=message):
            form.gated_delta_rule(**leaves)


def test_wrong_counts_are_named(make_case):
    leaves = make_case("delta_rule", 4).leaves
    with pytest.raises(SenriError, match="chunk_size is 0"):
        chunked.delta_rule(**leaves, chunk_size=0)
    with pytest.raises(SenriError, match="k has 4 tokens, but the recurrent form takes exactly 1"):
        recurrent.delta_rule(**leaves)
