"""Memory files: what goes in comes out, whole; everything else is one clear sentence and no harm."""

import dataclasses
import errno
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from senri.errors import SenriError
from senri.memory.file import digest, read_file, write_file
from senri.memory.header import FORMAT_VERSION, Header, SourceProgress


@pytest.fixture
def header():
    return Header("session", "some/base", "f" * 64, "float32", 12345, "linear", "tensor")


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "layers.3.memory.M": torch.randn(1, 2, 4, 4, generator=generator),
        "layers.3.memory.count": torch.tensor([12345]),
        "layers.3.memory.begun": torch.tensor([1]),
        "layers.0.window.keys": torch.randn(1, 2, 5, 4, generator=generator).bfloat16(),
    }


@pytest.fixture
def written(tmp_path, tensors, header):
    path = tmp_path / "book.senri"
    write_file(path, tensors, header)
    return path


def test_round_trip_keeps_every_bit(written, tensors, header):
    loaded, loaded_header = read_file(written)
    assert loaded_header == header
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_source_progress_is_kept(tmp_path, tensors, header):
    header = dataclasses.replace(header, source=SourceProgress("book.txt", "a" * 64, 777))
    write_file(tmp_path / "x", tensors, header)
    assert read_file(tmp_path / "x")[1].source == SourceProgress("book.txt", "a" * 64, 777)


@pytest.mark.parametrize("tokens", (0, 9, 10**18))
def test_size_does_not_depend_on_tokens_read(tmp_path, written, tensors, header, tokens):
    write_file(tmp_path / "other", tensors, dataclasses.replace(header, tokens_read=tokens))
    assert (tmp_path / "other").stat().st_size == written.stat().st_size


def test_views_and_shared_storage_are_written(tmp_path, header):
    whole = torch.arange(12.0).view(3, 4)
    write_file(tmp_path / "x", {"a": whole.T, "b": whole}, header)
    loaded, _ = read_file(tmp_path / "x")
    assert torch.equal(loaded["a"], whole.T)
    assert torch.equal(loaded["b"], whole)


def test_every_flipped_byte_is_noticed(written):
    content = written.read_bytes()
    for position in range(0, len(content), 7):
        altered = bytearray(content)
        altered[position] ^= 1
        written.write_bytes(altered)
        with pytest.raises(SenriError, match="book.senri"):
            read_file(written)


@pytest.mark.parametrize("kept", (0, 5, 100, -1, -100))
def test_truncated_file(written, kept):
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(SenriError, match=r"book\.senri is (empty|damaged or cut short|not a safetensors)"):
        read_file(written)


def test_not_safetensors(tmp_path):
    (tmp_path / "notes.txt").write_text("once upon a time there was no memory at all")
    with pytest.raises(SenriError, match=r"notes\.txt is not a safetensors file"):
        read_file(tmp_path / "notes.txt")


def test_other_safetensors(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(SenriError, match="not a Senri memory"):
        read_file(tmp_path / "model.safetensors")


def test_newer_format(written):
    with safe_open(written, "pt") as stream:
        metadata = stream.metadata()
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    metadata.pop("sha256")
    metadata |= {"format_version": str(FORMAT_VERSION + 1), "created_by": "senri 99.0"}
    save_file(tensors, written, metadata={**metadata, "sha256": digest(metadata, tensors)})
    with pytest.raises(SenriError, match=r"written by senri 99\.0.*update senri"):
        read_file(written)


def test_missing_file_and_folder(tmp_path, tensors, header):
    with pytest.raises(SenriError, match="does not exist"):
        read_file(tmp_path / "nothing")
    with pytest.raises(SenriError, match="is a folder"):
        read_file(tmp_path)
    with pytest.raises(SenriError, match="is a folder"):
        write_file(tmp_path, tensors, header)
    with pytest.raises(SenriError, match="does not exist"):
        write_file(tmp_path / "no" / "file", tensors, header)


@pytest.mark.parametrize("step", ("fsync", "replace"))
def test_full_disk_leaves_the_old_file_and_no_other(monkeypatch, written, tensors, header, step):
    before = written.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(SenriError, match="No space left on device"):
        write_file(written, tensors | {"layers.9.memory.M": torch.ones(9)}, header)
    assert written.read_bytes() == before
    assert [entry.name for entry in written.parent.iterdir()] == ["book.senri"]


def test_an_interrupt_leaves_no_temporary_file(monkeypatch, written, tensors, header):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(written, tensors, header)
    assert [entry.name for entry in written.parent.iterdir()] == ["book.senri"]
