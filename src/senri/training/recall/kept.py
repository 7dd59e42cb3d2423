"""KeptRuns: what enters a layer after some runs of tokens, and what comes out behind the last one without a memory.

Facts and questions do not change from step to step, and the layers below the memory do not either. So each run is
computed when it is asked for the first time, and kept on disk; a run of training that goes on finds it there. As in
use, each stands behind a window of text, which several share.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from senri.memory.state import fingerprint
from senri.mixers.cache_senri import peek_cache
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.evaluating import evaluating
from senri.training.frozen_base import check_finite, lower_fingerprint, open_kept
from senri.training.recall.window import Window

_ROWS = 8
"""Runs that are computed together; so many after each other stand behind one window."""


@dataclass(frozen=True)
class Run:
    """Some tokens.

    Attributes:
        ids: the tokens.
        skip: of these so many at the beginning are only there to be attended to.
        answer: the first token that it matters what the model would say instead.
    """

    ids: tuple[int, ...]
    skip: int = 0
    answer: int = 1

    def __len__(self) -> int:
        return len(self.ids) - self.skip


class KeptRuns:
    """Runs with the outputs of the frozen layers.

    Args:
        model: a Senri model whose layers are frozen, but for its memories.
        runs: all runs.
        windows: what stands before them, `[1, window]` each.
        start_layer: the layer whose inputs are kept.
        folder: where they are kept.
        dtype: of the states that are kept, `float16` or `float32`.
        outputs: keep also what the model has for the head, with its memories off.
        half: compute in bfloat16.

    Raises:
        SenriError: the folder cannot be written.
    """

    def __init__(
        self,
        model: SenriForCausalLM,
        runs: Sequence[Run],
        windows: Sequence[Tensor],
        start_layer: int,
        folder: Path,
        dtype: str,
        outputs: bool,
        half: bool,
    ) -> None:
        self._model, self._runs, self._start_layer, self._half = model, runs, start_layer, half
        self._windows = windows
        self._behind: dict[int, tuple[Window, Any]] = {}  # by window: its lower layers, and a cache of the others
        self._ends = [*accumulate(len(run) for run in runs)]
        parts = [
            lower_fingerprint(model, start_layer),
            dtype,
            half,
            outputs,
            [[run.skip, run.answer, *run.ids] for run in runs],
            [window.tolist() for window in windows],
        ]
        if outputs:
            memory = {id(part) for part in _memory_parameters(model)}
            parts.append(fingerprint({}, {n: p for n, p in model.named_parameters() if id(p) not in memory}))
        identity = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        shape = (self._ends[-1], model.config.hidden_size)
        arrays = {"states": (shape, dtype), "is_there": ((len(runs),), "uint8")}
        kept = open_kept(folder, identity, arrays | ({"outputs": (shape, dtype)} if outputs else {}))
        self._states, self._is_there, self._outputs = kept["states"], kept["is_there"], kept.get("outputs")

    def states(self, numbers: Sequence[int]) -> list[Tensor]:
        """Return what enters the layer in some runs, `[seq, hidden]` each, float32.

        Raises:
            SenriError: numbers too large for float16.
        """
        self._compute(numbers)
        return [torch.from_numpy(self._states[self._place(number)].astype(np.float32)) for number in numbers]

    def outputs(self, numbers: Sequence[int]) -> list[Tensor]:
        """Return what the head makes logits of behind each token of some runs, `[seq, hidden]` each, float32.

        Before the token that the answer follows they are zeros.

        Raises:
            SenriError: numbers too large for float16.
        """
        assert self._outputs is not None
        self._compute(numbers)
        return [torch.from_numpy(self._outputs[self._place(number)].astype(np.float32)) for number in numbers]

    def window(self, number: int) -> Tensor:
        """Return the tokens that stand before a run, `[window]`."""
        return self._windows[self._window_of(number)][0]

    def _window_of(self, number: int) -> int:
        return number // _ROWS % len(self._windows)

    def _place(self, number: int) -> slice:
        end = self._ends[number]
        return slice(end - len(self._runs[number]), end)

    @torch.no_grad()
    def _compute(self, numbers: Sequence[int]) -> None:
        missing: dict[int, list[int]] = {}
        for number in sorted({number for number in numbers if not self._is_there[number]}):
            missing.setdefault(self._window_of(number), []).append(number)
        for window, some in missing.items():
            by_length = sorted(some, key=lambda number: (len(self._runs[number].ids), number))
            for start in range(0, len(by_length), _ROWS):
                self._compute_together(by_length[start : start + _ROWS], window)

    def _compute_together(self, numbers: Sequence[int], window: int) -> None:
        device = self._model.device
        runs = [self._runs[number] for number in numbers]
        padded = pad_sequence([torch.tensor(run.ids) for run in runs], batch_first=True)
        padded = padded.to(device)  # padding stands behind the end, which nothing sees
        with torch.autocast(device.type, torch.bfloat16, enabled=self._half):
            if window not in self._behind:
                read = Window(self._model, self._windows[window].to(device), self._start_layer)
                self._behind[window] = read, None if self._outputs is None else read.upper()
            read, upper = self._behind[window]
            states = read.lower(padded)
            outputs = None if upper is None else self._run(states, read, upper)
        for row, (number, run) in enumerate(zip(numbers, runs, strict=True)):
            place = self._place(number)
            with np.errstate(over="ignore"):  # said in words below
                self._states[place] = states[row, run.skip : len(run.ids)].float().cpu().numpy()
            check_finite(self._states[place])
            if self._outputs is not None and outputs is not None:
                first = max(run.answer - 1, run.skip)
                self._outputs[place][first - run.skip :] = outputs[row, first : len(run.ids)].float().cpu().numpy()
                check_finite(self._outputs[place])
            self._is_there[number] = 1

    def _run(self, states: Tensor, read: Window, upper: Any) -> Tensor:
        """Return what comes out behind the last norm, `[batch, seq, hidden]`, for states that enter the layer."""
        cache = peek_cache(upper)
        cache.batch_repeat_interleave(len(states))
        positions = read.positions_behind(*states.shape[:2])
        with evaluating(self._model), self._model.memory_disabled():
            run = self._model.model(
                inputs_embeds=states,
                position_ids=positions,
                start_layer=self._start_layer,
                past_key_values=cache,
                use_cache=True,
            )
        outputs: Tensor = run.last_hidden_state
        return outputs


def _memory_parameters(model: SenriForCausalLM) -> list[Tensor]:
    layers = [model.model.layers[layer].self_attn for layer in model.model.memory_branches()]
    return [parameter for layer in layers for name, parameter in layer.named_parameters() if name.startswith("memory")]
