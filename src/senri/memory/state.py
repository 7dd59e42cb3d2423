"""The memory of a whole model: every layer's state with a header; saved, loaded, merged, compared, looked into."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from senri.errors import SenriError
from senri.memory.base import LayerState, state_bytes
from senri.memory.file import digest, read_file, write_file
from senri.memory.header import Header, SourceProgress
from senri.memory.inspection import DifferenceRow, HeadRow, differences, head_rows
from senri.memory.merging import merge_layer_states

__all__ = [
    "DifferenceRow",
    "Header",
    "HeadRow",
    "MemoryState",
    "SourceProgress",
    "fingerprint",
    "split_tensors",
]

_NAME = re.compile(r"layers\.(\d+)\.(memory\.(\w+)|window\.(keys|values))")


@dataclass
class MemoryState:
    """The memories of a model, by layer index. Independent of the model until it is set there."""

    layers: dict[int, LayerState]
    header: Header

    @property
    def batch_size(self) -> int:
        """Rows; 1 where there is no layer."""
        return max((tensor.shape[0] for state in self.layers.values() for tensor in state.values()), default=1)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; the same however much was read."""
        return sum(state_bytes(state) for state in self.layers.values())

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names they have in a file, `layers.{index}.memory.{name}`."""
        return {
            f"layers.{index}.memory.{name}": tensor
            for index, state in self.layers.items()
            for name, tensor in state.items()
        }

    def save(self, path: str | Path) -> None:
        """Write a memory file (see `senri.memory.file.write_file`)."""
        write_file(path, self.to_tensors(), replace(self.header, kind="memory"))

    @classmethod
    def load(cls, path: str | Path) -> "MemoryState":
        """Read a memory file, or the memories of a session file.

        Raises:
            SenriError: not a readable Senri file (see `senri.memory.file.read_file`).
        """
        tensors, header = read_file(path)
        return cls(layers=split_tensors(tensors)[0], header=replace(header, kind="memory"))

    @classmethod
    def merge(cls, states: Sequence["MemoryState"]) -> "MemoryState":
        """Add memories of one model with the linear rule: the result answers as if it had read all their texts.

        Raises:
            SenriError: no states, another rule, or states of different models or sizes.
        """
        if not states:
            raise SenriError("nothing to merge: give at least one memory.")
        first = states[0]
        for other in states[1:]:
            first._check_same_model(other)
        indices = sorted({index for state in states for index in state.layers})
        layers = {
            index: merge_layer_states(
                [state.layers[index] for state in states if index in state.layers], first.header.rule
            )
            for index in indices
        }
        tokens = sum(state.header.tokens_read for state in states)
        return cls(layers, replace(first.header, kind="memory", tokens_read=tokens, source=None))

    def diff(self, other: "MemoryState") -> list[DifferenceRow]:
        """Compare M head by head; a layer that only one of them has counts as empty in the other.

        Raises:
            SenriError: memories of different models or of different numbers of rows.
        """
        self._check_same_model(other)
        return differences(self.layers, other.layers)

    def inspect(self, singular_values: int = 5) -> list[HeadRow]:
        """Return what every matrix holds, with its so many largest singular values; layers without one are left out."""
        return head_rows(self.layers, singular_values)

    def _check_same_model(self, other: "MemoryState") -> None:
        mine, theirs = self.header, other.header
        if mine.fingerprint != theirs.fingerprint:
            raise SenriError(
                f"the memories belong to different models (base {mine.base!r}, fingerprint {mine.fingerprint[:12]}, "
                f"and base {theirs.base!r}, fingerprint {theirs.fingerprint[:12]}): take memories of one model."
            )


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[int, LayerState], dict[int, dict[str, Tensor]]]:
    """Sort a file's tensors into memory states and windows (`keys`, `values`), by layer index.

    Raises:
        SenriError: a name that no Senri file has.
    """
    memories: dict[int, LayerState] = {}
    windows: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise SenriError(f"the file holds a tensor {name!r} that no memory or session has: name another file.")
        index, memory_name, window_name = int(match[1]), match[3], match[4]
        if memory_name:
            memories.setdefault(index, {})[memory_name] = tensor
        else:
            windows.setdefault(index, {})[window_name] = tensor
    return memories, windows


def fingerprint(layout: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Return a hex SHA-256 of what gives states their meaning: a JSON-able layout and named weights."""
    return digest(dict(layout), weights)
