"""Sessions: one state over many calls, forked, cleaned, saved, loaded; going on equals never having stopped."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from senri.errors import SenriError
from senri.memory.state import MemoryState
from senri.models import SenriForCausalLM, Session, SourceProgress

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def test_reading_in_pieces_equals_one_forward(model: SenriForCausalLM, ids: Tensor) -> None:
    session = Session(model, batch_size=2)
    got = torch.cat([session.logits(ids[:, :13]), session.logits(ids[:, 13:])], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(got, model(ids).logits, **TOLERANCE)
    assert session.tokens_read == ids.shape[1]
    torch.testing.assert_close(Session(model, 2).read(ids), got[:, -1], **TOLERANCE)


def test_a_saved_session_goes_on_bit_for_bit(model: SenriForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    session = Session(model, batch_size=2)
    session.read(ids[:, :13])
    session.source = SourceProgress("book.txt", "ab" * 32, 13)
    session.save(tmp_path / "book.senri")
    loaded = Session.load(tmp_path / "book.senri", model)
    assert (loaded.tokens_read, loaded.source) == (13, session.source)
    for piece in (ids[:, 13:20], ids[:, 20:]):
        assert torch.equal(loaded.logits(piece), session.logits(piece))


def test_a_fork_is_independent(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    session = Session(memory_model, batch_size=2)
    session.read(ids[:, :13])
    before = session.get_memory_state()
    session.fork().read(ids[:, 13:])
    assert session.tokens_read == 13
    after = session.get_memory_state()
    for index, tensors in before.layers.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, after.layers[index][name])


def test_bytes_do_not_grow(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    session = Session(memory_model, batch_size=2)
    session.read(ids)
    memory, window = session.memory_bytes(), session.window_bytes()
    for _ in range(3):
        session.read(ids)
    assert session.memory_bytes() == memory > 0
    if memory_model.config.sliding_window:
        assert session.window_bytes() == window


def test_file_size_does_not_depend_on_length(
    build: Callable[..., SenriForCausalLM], ids: Tensor, tmp_path: Path
) -> None:
    session = Session(build("gate"), batch_size=2)
    sizes = []
    for _ in range(3):
        session.read(ids)
        session.save(tmp_path / "book.senri")
        sizes.append((tmp_path / "book.senri").stat().st_size)
    assert len(set(sizes)) == 1


def test_new_sequence_keeps_one_session(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    row = ids[:1]
    with torch.no_grad():
        expected = memory_model(row).logits
        with memory_model.new_sequence() as session:
            memory_model(row[:, :10])
            got = memory_model(row[:, 10:]).logits
            assert session.tokens_read == row.shape[1]
        torch.testing.assert_close(got, expected[:, 10:], **TOLERANCE)
        torch.testing.assert_close(memory_model(row[:, 10:]).logits[:, 0], memory_model(row[:, 10:11]).logits[:, 0])


def test_generation_inside_a_session_follows_what_was_read(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    row = ids[:1]
    expected = memory_model.generate(row, max_new_tokens=6, do_sample=False)
    with memory_model.new_sequence() as session:
        memory_model(row[:, :20])
        got = memory_model.generate(row[:, 20:], max_new_tokens=6, do_sample=False)
        assert torch.equal(got[:, -6:], expected[:, -6:])
        assert session.tokens_read == row.shape[1] + 6
        beams = memory_model.generate(row[:, :2], max_new_tokens=3, num_beams=3, do_sample=False)
        assert session.tokens_read == row.shape[1] + 8 + beams.shape[1] - 2


def test_memory_moves_between_models_of_the_same_weights(
    memory_model: SenriForCausalLM, ids: Tensor, tmp_path: Path
) -> None:
    memory_model.reset_memory()
    with torch.no_grad():
        memory_model(ids[:, :15], update_memory=True)
        memory_model(ids[:, 15:], update_memory=True)
    memory_model.get_memory_state().save(tmp_path / "book.memory")
    memory_model.save_pretrained(tmp_path / "model")
    twin = SenriForCausalLM.from_pretrained(tmp_path / "model")
    twin.set_memory_state(MemoryState.load(tmp_path / "book.memory"))
    original = Session(memory_model, batch_size=2)
    original.set_memory_state(memory_model.get_memory_state())
    with torch.no_grad():
        # Weights in a file lie at other addresses, by which processors add up in another order.
        moved = twin(ids[:, :5], update_memory=True).logits
        torch.testing.assert_close(moved, original.logits(ids[:, :5]), **TOLERANCE)
    memory_model.reset_memory()
    with pytest.raises(SenriError, match="update_memory=True"):
        memory_model.get_memory_state()


def test_another_model_refuses_the_file(build: Callable[..., SenriForCausalLM], ids: Tensor, tmp_path: Path) -> None:
    session = Session(build("gate"), batch_size=2)
    session.read(ids)
    session.save(tmp_path / "book.senri")
    for other in (build("gate", seed=1), build("add")):
        with pytest.raises(SenriError, match="belongs to another model"):
            Session.load(tmp_path / "book.senri", other)


def test_cleaning_happens_wherever_calls_begin_and_end(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    memory = {"rule": "linear", "segment_length": 4, "gate_init": 0.0, "clean_every": 2, "clean_energy": 0.5}
    model = build("gate", memory=memory)
    whole, pieces, never = (
        Session(model, 2),
        Session(model, 2),
        Session(build("gate", memory={**memory, "clean_every": 0}), 2),
    )
    expected = whole.logits(ids)
    got = torch.cat([pieces.logits(ids[:, start : start + 3]) for start in range(0, ids.shape[1], 3)], dim=1)
    torch.testing.assert_close(got, expected, **TOLERANCE)
    assert not torch.allclose(never.logits(ids), expected, **TOLERANCE)


def test_positions_far_out_mean_the_same(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("sliding")
    with torch.no_grad():
        near = model(ids).logits
        far = model(ids, position_ids=torch.arange(ids.shape[1])[None] + 50_000_017).logits
    torch.testing.assert_close(near, far, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", [(1, 5), (2, 0), (5,)])
def test_wrong_shapes_are_refused(build: Callable[..., SenriForCausalLM], shape: tuple[int, ...]) -> None:
    with pytest.raises(SenriError, match="reads token ids"):
        Session(build("gate"), batch_size=2).read(torch.zeros(shape, dtype=torch.long))


def test_a_memory_state_is_a_copy_on_the_way_out_and_in(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    session, other = Session(memory_model), Session(memory_model)
    session.read(ids[:1, :13])
    taken = session.get_memory_state()
    other.set_memory_state(taken)
    expected = session.fork().logits(ids[:1, 13:]), other.fork().logits(ids[:1, 13:])
    for tensors in taken.layers.values():
        for tensor in tensors.values():
            tensor.zero_()
    assert torch.equal(session.logits(ids[:1, 13:]), expected[0])
    assert torch.equal(other.logits(ids[:1, 13:]), expected[1])
