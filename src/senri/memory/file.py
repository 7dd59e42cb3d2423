"""Memory files: safetensors with a versioned header and a content hash, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from senri.errors import SenriError
from senri.memory.header import Header

_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its JSON header in this many bytes."""


def digest(description: object, tensors: Mapping[str, Tensor]) -> str:
    """Return the hex SHA-256 of a JSON-able description and of names, dtypes, shapes and bytes of tensors."""
    sha256 = hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def write_file(path: str | Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write tensors and header; a file that was there stays as it was unless everything was written.

    Raises:
        SenriError: the folder is missing, the path is a folder, or the disk is full or refuses.
    """
    path = Path(path)
    if path.is_dir():
        raise SenriError(f"{path} is a folder: name a file to write.")
    if not path.parent.is_dir():
        raise SenriError(f"{path.parent} does not exist: make the folder or name another file.")
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    metadata = header.to_metadata()
    content = save(plain, metadata={**metadata, "sha256": digest(metadata, plain)})
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise SenriError(f"{path} could not be written ({error.strerror}): nothing was changed.") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_file(path: str | Path) -> tuple[dict[str, Tensor], Header]:
    """Read what `write_file` wrote, checking all of it.

    Raises:
        SenriError: missing, a folder, not safetensors, not Senri's, of a newer format, cut short, or altered.
    """
    path = Path(path)
    if path.is_dir():
        raise SenriError(f"{path} is a folder: name a memory or session file.")
    if not path.exists():
        raise SenriError(f"{path} does not exist: check the path.")
    try:
        _check_begin(path)
        with safe_open(path, framework="pt") as stream:
            metadata: dict[str, str] = stream.metadata() or {}
            header = Header.from_metadata(metadata, str(path))
            # copies: a tensor that is mapped from the file would change with it
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise SenriError(f"{path} is damaged or cut short ({error}): restore the file from a copy.") from error
    except OSError as error:
        raise SenriError(f"{path} could not be read ({error.strerror}): check the file.") from error
    expected = metadata.pop("sha256", "")
    if digest(metadata, tensors) != expected:
        raise SenriError(f"{path} was altered after it was written (content hash): restore the file from a copy.")
    return tensors, header


def _check_begin(path: Path) -> None:
    """Tell a file of another kind from a damaged one by its first bytes."""
    with path.open("rb") as stream:
        begin = stream.read(_LENGTH_BYTES + 1)
    size = path.stat().st_size
    if size == 0:
        raise SenriError(f"{path} is empty: restore the file from a copy.")
    if len(begin) <= _LENGTH_BYTES or begin[-1:] != b"{":
        raise SenriError(f"{path} is not a safetensors file: name a file that Senri has written.")
    if int.from_bytes(begin[:_LENGTH_BYTES], "little") > size - _LENGTH_BYTES:
        raise SenriError(f"{path} is damaged or cut short (its header is incomplete): restore the file from a copy.")
