"""Trained memories are put into a converted model, or refused in a sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from senri.conversion import Preset, convert, load_preset
from senri.conversion.trained import SUFFIX, find_trained, shipped_memories
from senri.errors import SenriError
from senri.memory import MemoryConfig
from senri.memory.branch import MemoryBranch

NAME = "model.layers.1.self_attn.memory_gate.weight"


def preset(trained: str | None) -> Preset:
    memory = MemoryConfig(combine="gate", segment_length=8)
    return Preset(memory_layers=[1], sliding_window=64, memory=memory, trained=trained)


@pytest.fixture
def base(bases, tmp_path: Path) -> Path:
    return bases.save("llama", tmp_path / "base")


def write(path: Path, **tensors: torch.Tensor) -> str:
    safetensors.torch.save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return str(path)


def test_trained_parameters_take_their_places(base: Path, tmp_path: Path) -> None:
    file = write(
        tmp_path / "learnt.safetensors", **{NAME: torch.arange(4.0), "model.norm.weight": torch.full((32,), 3.0)}
    )
    result = convert(base, preset(file))
    parameters = dict(result.model.named_parameters())
    assert torch.equal(parameters[NAME], torch.arange(4.0))
    assert torch.equal(parameters["model.norm.weight"], torch.full((32,), 3.0))
    rows = {row.name: row for row in result.table.rows if row.action == "created"}
    assert rows["model.layers.*.self_attn.memory_gate.weight"].source == f"trained: {file}"
    assert rows["model.norm.weight"].source == f"trained: {file}"
    plain = dict(convert(base, preset(None)).model.named_parameters())
    assert all(torch.equal(plain[name], parameters[name]) for name in plain if name not in (NAME, "model.norm.weight"))


def test_what_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    for number, (tensors, message) in enumerate(
        [
            ({"model.layers.7.self_attn.memory_gate.weight": torch.zeros(4)}, "which the model does not have"),
            ({NAME: torch.zeros(5)}, r"of the shape \[5\], but the model's is \[4\]"),
        ]
    ):
        file = write(tmp_path / f"{number}.safetensors", **tensors)
        with pytest.raises(SenriError, match=message):
            convert(base, preset(file))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no tensors here")
    with pytest.raises(SenriError, match="damaged"):
        convert(base, preset(str(damaged)))


def test_a_part_of_a_memory_is_refused(base: Path, tmp_path: Path) -> None:
    own = replace(preset(None), memory=MemoryConfig(combine="add", projections="own", segment_length=8))
    tensors = dict(convert(base, own).model.named_parameters())
    held = {name: tensor.detach() for name, tensor in tensors.items() if ".self_attn.memory" in name}
    whole = write(tmp_path / "whole.safetensors", **held)
    assert convert(base, replace(own, trained=whole)).model is not None
    del held["model.layers.1.self_attn.memory.inputs.k_proj.weight"]
    part = write(tmp_path / "part.safetensors", **held)
    with pytest.raises(SenriError, match=r"a part of the memory in layer 1: .*k_proj.weight is not there"):
        convert(base, replace(own, trained=part))


def test_a_name_or_a_file_that_is_not_there(base: Path) -> None:
    with pytest.raises(SenriError, match="no trained memory named 'nothing'"):
        convert(base, preset("nothing"))
    with pytest.raises(SenriError, match="no such file"):
        convert(base, preset("nowhere.safetensors"))


def test_shipped_memories_are_found_by_name() -> None:
    for name, path in shipped_memories().items():
        assert find_trained(name) == path and path.suffix == SUFFIX


def test_the_recall_preset_and_its_memory_belong_together() -> None:
    preset = load_preset("smollm2_recall")
    assert preset.trained == "smollm2_recall"
    path = find_trained(preset.trained)
    assert path.stat().st_size <= 10_000_000
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        assert preset.memory.num_heads is not None and preset.memory.value_dim is not None
        pairs = preset.memory.num_heads * preset.memory.value_dim // 2
        frequencies = file.get_slice("model.layers.18.self_attn.memory_codes.frequencies")
        assert frequencies.get_shape() == [pairs, 576]
    assert all(name.startswith("model.layers.18.self_attn.memory") for name in names)
    assert any("memory_read" in name for name in names)
    branch = MemoryBranch(preset.memory, 576, 9, 3, 64, 64)
    wanted = {f"memory.{name}" for name, _ in branch.named_parameters()}
    assert {name.split(".self_attn.")[1] for name in names} >= wanted  # none is left as it was made
