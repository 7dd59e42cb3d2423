"""The memory of a whole model: every layer's state with a header; saved, loaded, merged, compared, looked into."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from senri.errors import SenriError
from senri.memory.base import LayerState, state_bytes
from senri.memory.file import digest, read_file, write_file
from senri.memory.header import Header, SourceProgress
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


@dataclass(frozen=True)
class HeadRow:
    """What one head of one layer's memory holds.

    Attributes:
        layer: index in the model.
        row: of the batch.
        head: key/value head.
        norm: Frobenius norm of M.
        effective_rank: exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007); 0 for
            an empty memory.
        singular_values: the largest ones, descending.
        z_norm: Euclidean norm of z; None without z.
        tokens: tokens this row has read.
    """

    layer: int
    row: int
    head: int
    norm: float
    effective_rank: float
    singular_values: tuple[float, ...]
    z_norm: float | None
    tokens: int


@dataclass(frozen=True)
class DifferenceRow:
    """How one head's M differs between two memories.

    Attributes:
        layer: index in the model.
        row: of the batch.
        head: key/value head.
        norm: Frobenius norm of the first M.
        other_norm: of the second.
        difference: of first minus second.
        cosine: between the two as vectors; 0 where one is empty.
    """

    layer: int
    row: int
    head: int
    norm: float
    other_norm: float
    difference: float
    cosine: float


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
        rows = []
        for index in sorted({*self.layers, *other.layers}):
            mine, theirs = (state.layers.get(index, {}).get("M") for state in (self, other))
            mine = torch.zeros_like(theirs) if mine is None and theirs is not None else mine
            theirs = torch.zeros_like(mine) if theirs is None and mine is not None else theirs
            assert mine is not None and theirs is not None
            if mine.shape != theirs.shape:
                raise SenriError(
                    f"the memories have M of {tuple(mine.shape)} and {tuple(theirs.shape)} in layer {index}: "
                    "compare memories with the same number of rows."
                )
            one, two = mine.double().flatten(2), theirs.double().flatten(2)
            cosine = torch.cosine_similarity(one, two, dim=-1)
            norms = (one.norm(dim=-1), two.norm(dim=-1), (one - two).norm(dim=-1), cosine)
            for row, head in _heads(mine):
                rows.append(DifferenceRow(index, row, head, *(float(norm[row, head]) for norm in norms)))
        return rows

    def inspect(self, singular_values: int = 5) -> list[HeadRow]:
        """Return what every head holds, with its so many largest singular values."""
        rows = []
        for index, state in sorted(self.layers.items()):
            values = torch.linalg.svdvals(state["M"].double())
            shares = values / values.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
            ranks = torch.special.entr(shares).sum(dim=-1).exp() * (values[..., 0] > 0)
            z_norms = state["z"].double().norm(dim=-1) if "z" in state else None
            counts = state["count"].expand(values.shape[0])
            for row, head in _heads(state["M"]):
                rows.append(
                    HeadRow(
                        layer=index,
                        row=row,
                        head=head,
                        norm=float(values[row, head].norm()),
                        effective_rank=float(ranks[row, head]),
                        singular_values=tuple(values[row, head, :singular_values].tolist()),
                        z_norm=None if z_norms is None else float(z_norms[row, head]),
                        tokens=int(counts[row]),
                    )
                )
        return rows

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


def _heads(matrix: Tensor) -> list[tuple[int, int]]:
    return [(row, head) for row in range(matrix.shape[0]) for head in range(matrix.shape[1])]
