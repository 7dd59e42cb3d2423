"""A watcher sees every write of a memory before it happens, and changes nothing."""

import itertools

import pytest
import torch

from senri.errors import SenriError
from senri.memory import build_memory, resolve_config
from senri.memory.scan import scan

CASES = {
    "tensor": {"type": "tensor"},
    "tokens": {"granularity": "token", "rule": "gated_delta", "feature_map": "l2", "normaliser": "rmsnorm"},
    "banks": {"type": "tensor", "rule": "delta", "options": {"num_memory_banks": 2, "segments_per_bank": 1}},
    "gated": {"type": "tensor", "rule": "gated_delta", "order": "update_then_retrieve"},
    "batch": {"type": "tensor", "scope": "batch"},
    "multi": {"type": "multi", "options": {"num_memories": 3, "routing": "learned"}},
    "hierarchical": {"type": "hierarchical"},
    "orthogonal": {"type": "orthogonal", "rule": "delta"},
}
PIECES = ((0, 5), (5, 6), (6, 15), (15, 19))


def build(case: str):
    torch.manual_seed(0)
    config = resolve_config({"segment_length": 4, **CASES[case]})
    return build_memory(config, 24, 4, 2, key_dim=3, value_dim=5).double().eval()


@pytest.fixture(params=CASES)
def memory(request):
    return build(request.param)


def scanned(memory, tensors, state):
    """Scan in pieces; return outputs and the state after each."""
    found = []
    for begin, end in PIECES:
        out, state = memory.scan(state=state, **{name: x[:, :, begin:end] for name, x in tensors.items()})
        found.append((out, state))
    return found


def test_watching_changes_no_bit(memory, inputs, empty):
    tensors = inputs(memory, 2, 19)
    silent = scanned(memory, tensors, empty(memory, 2))
    with memory.watch(lambda run, before: None):
        watched = scanned(memory, tensors, empty(memory, 2))
    for (one, one_state), (other, other_state) in zip(silent, watched, strict=True):
        assert torch.equal(one, other)
        assert one_state.keys() == other_state.keys()
        assert all(torch.equal(tensor, other_state[name]) for name, tensor in one_state.items())


def test_every_write_is_seen_with_the_state_before_it(memory, inputs, empty):
    """What is seen, written again into the state seen with it, gives the state that is seen next."""
    tensors, seen = inputs(memory, 2, 19), []
    with memory.watch(lambda run, before: seen.append((run, before))):
        scanned(memory, tensors, empty(memory, 2))
    assert [run.keys.shape[2] for run, _ in seen] == [end - begin for begin, end in PIECES]
    first = seen[0][1]
    assert not first.committed.any() and not first.pending.any()
    for (run, before), (_, wanted) in itertools.pairwise(seen):
        _, after = scan(run, before, memory.config)
        torch.testing.assert_close(after.committed, wanted.committed.expand_as(after.committed))
        torch.testing.assert_close(after.pending, wanted.pending.expand_as(after.pending))
        assert run.strength.any()


def test_what_is_seen_adds_up_to_the_matrix(inputs, empty):
    memory = build("tensor")
    tensors, written = inputs(memory, 2, 16), []

    def add(run, before):
        written.append(torch.einsum("bhs,bhsf,bhsv->bhfv", run.strength, run.keys, run.values))

    with memory.watch(add):
        state = memory.write(tensors["k"], tensors["v"], empty(memory, 2), tensors["beta"])
        torch.testing.assert_close(sum(written), state["M"])
        memory.update(tensors["k"], tensors["v"])
    assert len(written) == 2
    torch.testing.assert_close(written[1], memory.state["M"], check_dtype=False, rtol=1e-5, atol=1e-5)


def test_reads_and_a_frozen_memory_are_not_told(memory, inputs, empty):
    tensors, seen = inputs(memory, 2, 19), []
    state = scanned(memory, tensors, empty(memory, 2))[-1][1]
    with memory.watch(lambda run, before: seen.append(run)):
        memory.read(tensors["q"], state)
        memory.freeze()
        memory.scan(state=state, **tensors)
    assert not seen


def test_nothing_remains_after_the_block(memory, inputs, empty):
    attributes, seen = dict(vars(memory)), []
    with memory.watch(lambda run, before: seen.append(run)):
        assert vars(memory) != attributes
    with pytest.raises(ZeroDivisionError), memory.watch(lambda run, before: seen.append(run)):
        raise ZeroDivisionError
    assert vars(memory) == attributes
    scanned(memory, inputs(memory, 2, 19), empty(memory, 2))
    assert not seen


def test_two_watchers_at_once_are_refused_and_the_first_goes_on(inputs, empty):
    memory, seen = build("tensor"), []
    with memory.watch(lambda run, before: seen.append(run)):
        with pytest.raises(SenriError, match="watched already"), memory.watch(lambda run, before: None):
            pass
        scanned(memory, inputs(memory, 2, 19), empty(memory, 2))
    assert len(seen) == len(PIECES)


def test_a_compiled_memory_is_one_graph_and_can_be_watched(inputs, empty):
    memory, seen = build("tokens"), []
    tensors = inputs(memory, 2, 19)
    torch.compiler.reset()
    compiled = torch.compile(lambda state: memory.scan(state=state, **tensors), backend="eager", fullgraph=True)
    out, _ = compiled(empty(memory, 2))
    with memory.watch(lambda run, before: seen.append(run.keys.shape[2])):
        watched, _ = compiled(empty(memory, 2))
    compiled(empty(memory, 2))
    assert seen == [19]
    assert torch.equal(out, watched)


def test_of_tokens_that_are_written_together_whole_segments_are_told(inputs, empty):
    memory = build_memory(
        resolve_config({"type": "least_squares", "segment_length": 4}), 24, 4, 2, key_dim=3, value_dim=5
    )
    memory = memory.double()
    tensors, seen = inputs(memory, 1, 19), []
    with memory.watch(lambda run, before: seen.append((run, before))):
        found = scanned(memory, tensors, empty(memory, 1))
    assert [run.keys.shape[2] for run, _ in seen] == [4, 0, 8, 4]
    values = torch.cat([run.values for run, _ in seen], dim=2)
    torch.testing.assert_close(values, tensors["v"][:, :, :16])
    for (_, state), (_, before) in zip(found, seen[1:], strict=False):
        torch.testing.assert_close(before.matrix, state["M"])
