"""FrozenBase: what enters the first trained layer, computed once for all training rows and kept on disk.

Layers below the first trained one give the same outputs in every step, so they are run once for each row; training then
starts from there. The outputs lie in a memory-mapped file, and a run that goes on finds them there.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from senri.errors import SenriError
from senri.evaluation.files import make_folder, write_bytes
from senri.memory.state import fingerprint
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.evaluating import evaluating


def first_trained_layer(model: SenriForCausalLM) -> int:
    """Return the first layer with a parameter that is trained; 0 where the embeddings are.

    Raises:
        SenriError: no layer has one.
    """
    if any(parameter.requires_grad for parameter in model.model.embed_tokens.parameters()):
        return 0
    for index, layer in enumerate(model.model.layers):
        if any(parameter.requires_grad for parameter in layer.parameters()):
            return index
    raise SenriError("no layer of the model is trained: nothing would be learnt.")


class FrozenBase:
    """The inputs of one layer for all training rows; each is computed when it is asked for the first time.

    Args:
        model: a Senri model, its trained parameters marked.
        rows: token ids `[seq]` of every row, all equally long.
        folder: where the outputs are kept.
        dtype: of what is kept, `float16` or `float32`.
        identity: of the rows; outputs of others in the folder are dropped.
        segment_tokens: tokens of one forward pass.
        half: compute in bfloat16, as the trainer computes the layers above.

    Raises:
        SenriError: the first layer is trained, or a folder that cannot be written.
    """

    def __init__(
        self,
        model: SenriForCausalLM,
        rows: Sequence[Tensor],
        folder: Path,
        dtype: str,
        identity: str,
        segment_tokens: int,
        half: bool = False,
    ) -> None:
        self.start_layer = first_trained_layer(model)
        if self.start_layer == 0:
            raise SenriError("frozen_base needs frozen layers below the first trained one: set it to false.")
        self._model, self._rows, self._segment_tokens, self._half = model, rows, segment_tokens, half
        shape = (len(rows), len(rows[0]), model.config.hidden_size)
        facts = [identity, lower_fingerprint(model, self.start_layer), shape, dtype, half]
        self.identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        arrays = {"states": (shape, dtype), "is_there": (shape[:1], "uint8")}
        kept = open_kept(folder, self.identity, arrays)
        self._states, self._is_there = kept["states"], kept["is_there"]

    def __getitem__(self, row: int) -> Tensor:
        """Return what enters `start_layer` in one row, `[seq, hidden]`, float32.

        Raises:
            SenriError: numbers too large for float16.
        """
        return torch.from_numpy(self._row(row).astype(np.float32))

    def _row(self, row: int) -> Any:
        if not self._is_there[row]:
            ids = self._rows[row].unsqueeze(0).to(self._model.device)
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._half):
                states = lower_states(self._model, ids, self.start_layer, self._segment_tokens)
            with np.errstate(over="ignore"):  # said in words below
                self._states[row] = states[0].float().cpu().numpy()
            check_finite(self._states[row])
            self._is_there[row] = 1
        return self._states[row]

    def stretch(self, start: int, count: int) -> Tensor:
        """Return what enters `start_layer` in a stretch of all rows one after the other, `[count, hidden]`, float32."""
        length = self._states.shape[1]
        pieces = []
        while count > 0:
            row, column = divmod(start, length)
            piece = self._row(row)[column : column + count]
            pieces.append(torch.from_numpy(piece.astype(np.float32)))
            start, count = start + len(piece), count - len(piece)
        return torch.cat(pieces) if pieces else torch.zeros(0, self._states.shape[2])


def lower_fingerprint(model: SenriForCausalLM, start_layer: int) -> str:
    """Return the fingerprint of all parameters below a layer."""
    lower = {
        name: parameter
        for name, parameter in model.model.named_parameters()
        if name.startswith("embed_tokens") or _layer_of(name) in range(start_layer)
    }
    return fingerprint({"layer": start_layer}, lower)


def open_kept(folder: Path, identity: str, arrays: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    """Open memory-mapped arrays in a folder: those that are there, or of another identity new ones of zeros.

    Args:
        folder: is made.
        identity: of what is kept in them.
        arrays: shape and dtype of each, by name.

    Raises:
        SenriError: the folder cannot be written.
    """
    try:
        make_folder(folder)
        stamp = folder / "identity"
        is_kept = stamp.is_file() and stamp.read_text(encoding="utf-8") == identity
        kept = {
            name: _memory_map(folder / f"{name}.npy", shape, dtype, is_kept) for name, (shape, dtype) in arrays.items()
        }
        write_bytes(stamp, identity.encode())
    except OSError as error:
        size = sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
        raise SenriError(
            f"{str(folder)!r} cannot be written ({error.strerror}); it takes {size:,} bytes: make room, or set "
            f"training.frozen_base=false."
        ) from error
    return kept


def check_finite(states: Any) -> None:
    """Check states that were stored.

    Raises:
        SenriError: numbers too large for float16.
    """
    if not np.isfinite(states).all():
        raise SenriError("hidden states are too large for float16: set training.frozen_base_dtype=float32.")


def _memory_map(path: Path, shape: tuple[int, ...], dtype: str, is_kept: bool) -> Any:
    """Open an array on disk, or make it anew, all zeros; what is never written takes no room."""
    if is_kept and path.is_file():
        return np.lib.format.open_memmap(path, mode="r+")
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)


@torch.no_grad()
def lower_states(model: SenriForCausalLM, ids: Tensor, start_layer: int, segment_tokens: int) -> Tensor:
    """Return what enters a layer for `[batch, seq]` token ids: `[batch, seq, hidden]`; dropout is off."""
    cache = None
    if ids.shape[1] > segment_tokens:
        cache = model.model.adopt(DynamicCache(config=model.config))
    with evaluating(model):
        pieces = [
            model.model(
                ids[:, begin : begin + segment_tokens],
                past_key_values=cache,
                use_cache=cache is not None,
                stop_layer=start_layer,
            ).last_hidden_state
            for begin in range(0, ids.shape[1], segment_tokens)
        ]
    return torch.cat(pieces, dim=1)


def _layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else None
