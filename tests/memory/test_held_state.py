"""TensorMemory in a notebook: update, retrieve, reset, clean, with nothing else to hold."""

import pytest
import torch

from senri.errors import SenriError
from senri.memory import SVDCleaningStats, TensorMemory


def test_the_three_lines_work_as_written():
    q, k, v = (torch.randn(2, 9, 100, 64) for _ in range(3))
    memory = TensorMemory(hidden_size=576, num_heads=9)
    memory.update(k, v)
    assert memory.retrieve(q).shape == (2, 9, 100, 64)
    assert memory.retrieve(q).any()


def test_nothing_written_reads_zeros_until_update_and_after_reset():
    q = torch.randn(2, 2, 3, 4)
    memory = TensorMemory(8, 2)
    assert memory.state is None
    assert not memory.retrieve(q).any()
    memory.update(q, q)
    assert memory.retrieve(q).any()
    memory.reset()
    assert memory.state is None
    assert not memory.retrieve(q).any()


@pytest.mark.parametrize("order", ("retrieve_then_update", "update_then_retrieve"))
@pytest.mark.parametrize("rule", ("linear", "delta", "gated_delta"))
def test_an_update_is_one_segment_that_is_visible_at_once(rule, order):
    k, v = torch.randn(2, 2, 7, 4), torch.randn(2, 2, 7, 4)
    memory = TensorMemory(8, 2, rule=rule, order=order, segment_length=3)
    memory.update(k, v)
    memory.update(v, k)
    one_segment = TensorMemory(8, 2, rule=rule, order=order, segment_length=7)
    state = one_segment.write(v, k, one_segment.write(k, v, one_segment.init_state(2)))
    torch.testing.assert_close(memory.state, state)
    assert memory.state["count"].tolist() == [14, 14]
    torch.testing.assert_close(memory.retrieve(k), one_segment.read(k, state))


def test_update_takes_strength_and_decay():
    k, v = torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4)
    memory = TensorMemory(8, 2)
    memory.update(k, v, beta=torch.zeros(1, 2, 7))
    assert not memory.retrieve(k).any()
    gated = TensorMemory(8, 2, rule="gated_delta")
    gated.update(k, v)
    before = gated.state["M"].clone()
    gated.update(k, v, beta=torch.zeros(1, 2, 7), decay=torch.full((1, 2, 7), 0.5))
    torch.testing.assert_close(gated.state["M"], before * 0.5**7)


def test_other_rows_than_the_held_state_are_refused():
    memory = TensorMemory(8, 2)
    memory.update(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3, 4))
    with pytest.raises(SenriError, match="2 rows, but the call has 3"):
        memory.update(torch.ones(3, 2, 3, 4), torch.ones(3, 2, 3, 4))
    with pytest.raises(SenriError, match="2 rows, but the call has 3"):
        memory.retrieve(torch.ones(3, 2, 3, 4))


def test_the_held_state_is_not_in_the_state_dict():
    memory = TensorMemory(8, 2)
    memory.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    assert not memory.state_dict()


def test_cleaning_by_hand_and_after_every_n_updates():
    memory = TensorMemory(16, 2, clean_every=2, clean_energy=0.5)
    with pytest.raises(RuntimeError, match="no state yet"):
        memory.svd_cleaning()
    k, v = torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, 8)
    ranks = []
    for _ in range(4):
        memory.update(k, v)
        ranks.append(int(torch.linalg.matrix_rank(memory.state["M"]).max()))
    assert ranks[0] == 8
    assert ranks[1] < 8
    assert ranks[3] < 8
    stats = memory.svd_cleaning(max_rank=1)
    assert isinstance(stats, SVDCleaningStats)
    assert stats.retained_rank == 1
    assert torch.linalg.matrix_rank(memory.state["M"]).tolist() == [[1, 1]]
    with pytest.raises(SenriError, match=r"energy_threshold is 0\.0"):
        memory.svd_cleaning(0.0)
    memory.reset()
    with pytest.raises(RuntimeError, match="no state yet"):
        memory.svd_cleaning()
