"""SharedReading: one reading of a long text that stands for as many as wanted, each with other sentences in it.

What layers below a memory make of a text is computed once. A sentence that is put in costs them its own tokens and
those right behind it; what is further behind enters the memory as it would without the sentence. The memory itself is
that of the text alone until the first sentence of a reading. From there it is a row of a batch, one for each reading,
written with every token of its own, as strongly as what it was written before leaves.

What this leaves out: tokens further behind a sentence than `behind` do not attend to it in the layers below the memory,
and a memory that turns codes by place counts places without the sentences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import DynamicCache

from senri.data import chunks
from senri.errors import SenriError
from senri.evaluation.files import write_bytes
from senri.evaluation.units import Scratch
from senri.memory.base import LayerState
from senri.memory.branch import MemoryBranch
from senri.memory.state import split_tensors
from senri.mixers import given_values, seen_by_memory
from senri.mixers.cache_senri import fork_cache
from senri.models import SenriForCausalLM
from senri.models.session import restore_windows, window_tensors

Hidden = Sequence[tuple[list[int], int]]
"""What one reading has put in: the tokens of each sentence, and the number of its place."""

_ROWS_TOGETHER = 8
"""Rows of a memory that are written at once: what more of them hold does not stay in a processor's caches."""

_Inputs = tuple[Tensor, tuple[Tensor, ...] | None]
"""What a memory takes of some tokens: hidden states, and the values that it is given."""


def memory_of(model: SenriForCausalLM) -> tuple[int, MemoryBranch]:
    """Return the layer and the memory of a model that shared reading can be used with.

    Raises:
        SenriError: more than one memory, or one that takes more than hidden states, or whose rows do not stand alone.
    """
    branches = model.model.memory_branches()
    only = next(iter(branches.values()), None)
    fitting = (
        len(branches) == 1
        and isinstance(only, MemoryBranch)
        and only.config.type != "orthogonal"
        and only.config.scope == "sequence"
        and only.config.projections == "own"
        and not only.config.clean_every
    )
    if not fitting:
        raise SenriError(
            "reading=shared needs a model with one memory: any type but orthogonal, with scope sequence, own "
            "projections and clean_every 0; set reading=full."
        )
    assert isinstance(only, MemoryBranch)
    return next(iter(branches)), only


@dataclass(frozen=True)
class _Step:
    """What is read next: tokens of the text, or a sentence in front of them that only some readings have.

    Attributes:
        rows: the readings that it is written to.
        start: the first token of the text.
        end: behind the last one.
        ids: of the sentence; None where the text goes on.
        begun: those of the readings that had no sentence before.
    """

    rows: list[int]
    start: int
    end: int
    ids: tuple[int, ...] | None = None
    begun: tuple[int, ...] = ()


class SharedReading:
    """A text read once, for many readings.

    Attributes:
        layer: the memory's.
        states: of the memory behind the text, one for each reading.
        alone: that behind the text without any sentence.

    Args:
        model: in evaluation mode.
        tokens: of the text.
        places: positions where sentences can be put in, ascending, at least `behind` and the tokens that the memory is
            late apart and from the end.
        behind: tokens after a place that are run again with each sentence; and those until all of them are written.
        readings: what each has put in, at most one sentence a place.
        chunk_size: tokens of one forward pass.
        scratch: told how many more tokens of the text were read; keeps what an interrupted reading has so far.

    Raises:
        SenriError: a model that this cannot be used with.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: SenriForCausalLM,
        tokens: list[int],
        places: Sequence[int],
        behind: int,
        readings: Sequence[Hidden],
        chunk_size: int,
        scratch: Scratch,
    ) -> None:
        self._scratch = scratch
        self._model, self._tokens, self._chunk_size = model, tokens, chunk_size
        self.layer, self._branch = memory_of(model)
        self._cache: Any = model.model.adopt(DynamicCache(config=model.config))
        count = len(readings) + 1  # the last one is the text alone
        self._past = self._branch.inputs.init_state(1, model.device)
        self._written = self._branch.memory.init_state(count, model.device)
        # Each has written as much of a budget as its own tokens say.
        self._counted = ["written"] if self._branch.config.write_budget else []
        self._written |= {name: self._past.pop(name).repeat(count, 1) for name in self._counted}
        self._read_all(self._steps(places, behind + self._branch.config.tokens_late, readings))
        rows = [row if hidden else count - 1 for row, hidden in enumerate([*readings, []])]
        *self.states, self.alone = [
            {**{name: x[row : row + 1] for name, x in self._written.items()}, **self._past} for row in rows
        ]

    def _steps(self, places: Sequence[int], behind: int, readings: Sequence[Hidden]) -> list[_Step]:
        written = [len(readings)]  # the rows that differ so far: that of the text alone stands for all others
        steps = [_Step(written, 0, places[0] if places else len(self._tokens))]
        for place, (position, end) in enumerate(zip(places, [*places[1:], len(self._tokens)], strict=True)):
            near = position + behind
            here = {row: tuple(ids) for row, hidden in enumerate(readings) for ids, at in hidden if at == place}
            for ids in dict.fromkeys(here.values()):
                rows = [row for row in here if here[row] == ids]
                steps.append(_Step(rows, position, near, ids, tuple(row for row in rows if row not in written)))
            steps.append(_Step([row for row in written if row not in here], position, near))
            written = sorted({*written, *here})
            steps.append(_Step(written, near, end))
        return steps

    def _read_all(self, steps: Sequence[_Step]) -> None:
        first, position = self._kept()
        for number, step in enumerate(steps):
            if number < first:
                continue
            if step.ids is None:
                self._stretch(step, number, position if number == first else step.start)
            else:
                self._begin(step.begun)
                self._put_in(step.rows, [*step.ids, *self._tokens[step.start : step.end]])

    def _begin(self, rows: Sequence[int]) -> None:
        """Begin rows as that of the text alone, the last one."""
        for x in self._written.values():
            x[[*rows]] = x[-1:].clone()

    def _put_in(self, rows: list[int], ids: list[int]) -> None:
        """Read a sentence and what is right behind it, for some rows; the text goes on as if it were not there."""
        past = self._past
        for inputs, given in self._lower(fork_cache(self._cache), ids):
            past = self._write(inputs, given, past, rows)

    def _stretch(self, step: _Step, number: int, position: int) -> None:
        """Read tokens of the text on, from a position on, and write them to some rows."""
        for inputs, given in self._lower(self._cache, self._tokens[position : step.end]):
            self._past = self._write(inputs, given, self._past, step.rows)
            position += inputs.shape[1]
            self._scratch.advance(inputs.shape[1])
            self._scratch.keep_file(self._save, position, partial(dict, step=number, position=position))

    def _save(self, path: Path) -> None:
        """Write what the reading has so far."""
        tensors = window_tensors(self._cache)
        for kind, state in (("past", self._past), ("written", self._written)):
            tensors |= {f"{kind}.{name}": tensor.contiguous() for name, tensor in state.items()}
        write_bytes(path, safetensors.torch.save(tensors))

    def _kept(self) -> tuple[int, int]:
        """Take up what an interrupted reading kept; return its step, and how much of the text it had read."""
        kept = self._scratch.kept_file()
        if kept is None:
            return 0, 0
        path, facts = kept
        try:
            tensors = safetensors.torch.load_file(path, device=str(self._model.device))
        except (OSError, SafetensorError):  # cut off or gone: the reading begins anew
            return 0, 0
        states = {
            kind: {name.split(".", 1)[1]: x for name, x in tensors.items() if name.startswith(f"{kind}.")}
            for kind in ("past", "written")
        }
        self._past, self._written = states["past"], states["written"]
        _, windows = split_tensors({name: x for name, x in tensors.items() if name.startswith("layers.")})
        restore_windows(self._cache, windows, facts["position"], self._model.device)
        self._scratch.advance(facts["position"])
        return facts["step"], facts["position"]

    def _write(self, inputs: Tensor, given: tuple[Tensor, ...] | None, past: LayerState, rows: list[int]) -> LayerState:
        """Write tokens to some rows; return the state of what makes keys and values of them."""
        index = torch.tensor(rows, dtype=torch.long, device=inputs.device)
        counted = {name: self._written[name][index] for name in self._counted}
        made, past = self._branch.inputs(inputs, {**past, **counted}, given, write_only=True)
        for name in counted:
            self._written[name][index] = past.pop(name)
        tokens = [
            None if x is None else x.expand(len(rows), *x.shape[1:]) for x in (made.k, made.v, made.beta, made.decay)
        ]
        for first in range(0, len(rows), _ROWS_TOGETHER):
            here = slice(first, first + _ROWS_TOGETHER)
            k, v, beta, decay = (None if x is None else x[here] for x in tokens)
            assert k is not None and v is not None
            before = {name: x[index[here]] for name, x in self._written.items() if name not in counted}
            for name, x in self._branch.memory.write(k, v, before, beta, decay).items():
                self._written[name][index[here]] = x
        return past

    def _lower(self, cache: Any, ids: list[int]) -> Iterator[_Inputs]:
        """Yield what enters the memory, `[1, seq, hidden]`, and the values that it is given, chunk by chunk."""
        layer: Any = self._model.model.layers[self.layer]
        for chunk in chunks(ids, self._chunk_size):
            chunk = chunk.to(self._model.device)
            out = self._model.model(chunk, past_key_values=cache, use_cache=True, stop_layer=self.layer)
            states = layer.input_layernorm(out.last_hidden_state)
            embeddings = self._model.model.embed_tokens(chunk)
            yield seen_by_memory(layer.self_attn, states, embeddings), given_values(layer.self_attn, embeddings, chunk)
