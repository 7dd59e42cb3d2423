"""Memories that are accumulated over calls, kept in a file and gone on with elsewhere."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from senri.errors import SenriError
from senri.memory import MemoryState
from senri.models import SenriForCausalLM, TransformerLM
from senri.models.layers import HierarchicalLayer, InfiniLayer, MultiMemoryLayer, PythiaLayer

ELSEWHERE = """
import sys, torch
import senri
from senri.memory import MemoryState
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder)
model.set_memory_state(MemoryState.load(folder + "/book.senri"))
ids = torch.load(folder + "/ids.pt")
with torch.no_grad():
    torch.save((model(ids).logits, model(ids, update_memory=True).logits, model(ids).logits), folder + "/out.pt")
"""


@torch.no_grad()
def test_only_calls_that_say_so_write(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    fresh = memory_model(ids[:, :9]).logits
    memory_model(ids[:, 9:], update_memory=True)
    kept = memory_model.get_memory_state()
    read = memory_model(ids[:, :9]).logits
    assert not torch.allclose(read, fresh)
    torch.testing.assert_close(memory_model(ids[:, :9]).logits, read)
    after = memory_model.get_memory_state()
    assert all(torch.equal(after.layers[i][name], x) for i, state in kept.layers.items() for name, x in state.items())
    memory_model(ids[:, :9], update_memory=True)
    assert memory_model.get_memory_state().header.tokens_read == ids.shape[1]
    memory_model.reset_memory()
    torch.testing.assert_close(memory_model(ids[:, :9]).logits, fresh)


@torch.no_grad()
def test_generation_reads_an_open_session_and_leaves_it(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model, options = build("gate"), {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    model(ids[:1, :20], update_memory=True)
    first = model.generate(ids[:1, 20:], **options)
    assert torch.equal(model.generate(ids[:1, 20:], **options), first)
    assert model.get_memory_state().header.tokens_read == 20
    with model.new_sequence():
        model(ids[:1, :20])
        assert torch.equal(model.generate(ids[:1, 20:], **options), first)


@torch.no_grad()
def test_calls_accumulate_as_one_text(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    for piece in ids.split(7, dim=1):
        memory_model(piece, update_memory=True)
    with memory_model.new_sequence(batch_size=2) as session:
        memory_model(ids)
        whole = session.get_memory_state()
    for index, state in memory_model.get_memory_state().layers.items():
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, whole.layers[index][name], atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("kind", [InfiniLayer, MultiMemoryLayer, HierarchicalLayer])
def test_another_process_goes_on_with_equal_outputs(kind: type[PythiaLayer], tmp_path: Path, ids: Tensor) -> None:
    torch.manual_seed(0)
    model = TransformerLM([kind(32, 4, 48, segment_length=4), PythiaLayer(32, 4, 48)], vocab_size=101).eval()
    model.save_pretrained(tmp_path)
    model(ids[:1], update_memory=True)
    state = model.get_memory_state()
    state.save(tmp_path / "book.senri")
    torch.save(ids[1:], tmp_path / "ids.pt")
    model.reset_memory()
    model.set_memory_state(MemoryState.load(tmp_path / "book.senri"))
    torch.set_num_threads(1)
    here = (model(ids[1:]).logits, model(ids[1:], update_memory=True).logits, model(ids[1:]).logits)
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path)], check=True, capture_output=True, timeout=240)
    there = torch.load(tmp_path / "out.pt")
    assert all(torch.equal(mine, other) for mine, other in zip(here, there, strict=True))
    model.reset_memory()
    assert not torch.allclose(model(ids[1:]).logits, here[0])


def test_a_memory_of_another_kind_is_refused(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model, other = build("multi"), build("gate")
    with torch.no_grad():
        model(ids, update_memory=True)
    with pytest.raises(SenriError, match="belongs to another model"):
        other.set_memory_state(model.get_memory_state())


def test_a_routed_memory_is_trained_on_as_one_and_a_trained_one_is_not_routed(
    build: Callable[..., SenriForCausalLM], ids: Tensor
) -> None:
    model = build("orthogonal")
    with torch.no_grad():
        model(ids[:1, :15], update_memory=True)
    routed = model.get_memory_state()
    model.train()
    model.reset_memory()
    model.set_memory_state(routed)
    model(ids[:1, 15:], labels=ids[:1, 15:], update_memory=True).loss.backward()
    assert model.model.layers[1].self_attn.k_proj.weight.grad.abs().sum() > 0
    single = model.get_memory_state()
    assert "touched" not in single.layers[1]
    assert single.layers[1]["M"].dim() == 4
    model.eval()
    with pytest.raises(SenriError, match="made in training"):
        model(ids[:1])
