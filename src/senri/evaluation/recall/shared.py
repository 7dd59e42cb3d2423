"""SharedReading: one reading of a long text that stands for as many as wanted, each with other sentences in it.

What a text does to the matrix of a memory is an affine map, M -> A M + B, because keys, values and strengths do not
depend on M (delta rule: Yang et al. 2024, arXiv 2406.06484, equation 1; tokens written together likewise). So the map
of every stretch between two places is computed once, and a sentence that is put in at a place only costs its own tokens
and those right behind it; the maps carry the result to the end. What this leaves out: tokens further behind a sentence
than `behind` do not attend to it in the layers below the memory. Of a memory that writes a segment's tokens together,
segments end where stretches do, so that a sentence does not move them all.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from senri.data import chunks
from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.branch import MemoryBranch
from senri.memory.least_squares import LeastSquaresMemory
from senri.mixers import given_values, seen_by_memory
from senri.mixers.cache_senri import fork_cache
from senri.models import SenriForCausalLM

_Map = tuple[Tensor, Tensor]
"""(A, B) of M -> A M + B."""

_Inputs = tuple[Tensor, tuple[Tensor, ...] | None]
"""What a memory takes of some tokens: hidden states, and the values that it is given."""


def memory_of(model: SenriForCausalLM) -> tuple[int, MemoryBranch]:
    """Return the layer and the memory of a model that shared reading can be used with.

    Raises:
        SenriError: more than one memory, or one whose writes are no affine map of a single matrix.
    """
    branches = model.model.memory_branches()
    only = next(iter(branches.values()), None)
    fitting = (
        len(branches) == 1
        and isinstance(only, MemoryBranch)
        and (
            isinstance(only.memory, LeastSquaresMemory)
            or (only.config.type == "tensor" and only.config.granularity == "token")
        )
        and only.config.scope == "sequence"
        and only.config.normaliser != "denominator"
        and only.config.projections == "own"
    )
    if not fitting:
        raise SenriError(
            "reading=shared needs a model with one memory: type least_squares, or tensor with granularity token; scope "
            "sequence, own projections and another normaliser than denominator; set reading=full."
        )
    assert isinstance(only, MemoryBranch)
    return next(iter(branches)), only


class SharedReading:
    """A text read once.

    Args:
        model: in evaluation mode.
        tokens: of the text.
        places: positions where sentences can be put in, ascending, at least `behind` and the tokens that the memory is
            late apart and from the end.
        behind: tokens after a place that are run again with each sentence; and those until all of them are written.
        sentences: all that will be put in, as tokens, by the number of their place.
        chunk_size: tokens of one forward pass.
        on_read: told how many more tokens of the text were read.

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
        sentences: Sequence[tuple[list[int], int]],
        chunk_size: int,
        on_read: Callable[[int], None],
    ) -> None:
        self._on_read = on_read
        self._model, self._tokens, self._chunk_size = model, tokens, chunk_size
        self.layer, self._branch = memory_of(model)
        self._behind = behind + self._branch.config.tokens_late
        self._before: list[LayerState] = []  # the memory at each place, its matrix that of the text alone
        self._near: list[_Map] = []  # of the tokens right behind each place, and of the others up to the next one
        self._far: list[_Map] = []
        self._runs: dict[tuple[int, tuple[int, ...]], list[_Inputs]] = {}
        by_place: dict[int, list[list[int]]] = {}
        for ids, place in sentences:
            by_place.setdefault(place, []).append(ids)
        self.end = self._read_all(places, by_place)

    @torch.no_grad()
    def final_state(self, hidden: Sequence[tuple[list[int], int]]) -> LayerState:
        """Return the memory's state after the text with some sentences in it.

        Args:
            hidden: the tokens of each, and the number of its place; sorted by place, one a place.
        """
        matrix = None
        for number, (ids, place) in enumerate(hidden):
            following = hidden[number + 1][1] if number + 1 < len(hidden) else len(self._before)
            before = self._before[place]
            run = self._runs[place, tuple(ids)]
            state = before if matrix is None else {**before, "M": matrix}
            for inputs, given in run:
                state = self._branch.write(inputs, state, given)
            matrix = self._finished(state)["M"]
            matrix = _apply(self._far[place], matrix)
            for between in range(place + 1, following):
                matrix = _apply(self._far[between], _apply(self._near[between], matrix))
        added = sum(len(ids) for ids, _ in hidden)
        return {**self.end, "count": self.end["count"] + added} | ({} if matrix is None else {"M": matrix})

    def _read_all(self, places: Sequence[int], by_place: dict[int, list[list[int]]]) -> LayerState:
        cache: Any = self._model.model.adopt(DynamicCache(config=self._model.config))
        state = self._branch.init_state(1, self._model.device)
        ends = [*places[1:], len(self._tokens)]
        state, _ = self._stretch(cache, state, 0, places[0] if places else len(self._tokens))
        for place, (position, end) in enumerate(zip(places, ends[: len(places)], strict=True)):
            near = position + self._behind
            self._before.append(state)
            for ids in by_place.get(place, []):
                run = self._lower(fork_cache(cache), [*ids, *self._tokens[position:near]])
                self._runs[place, tuple(ids)] = [*run]
            state, change = self._stretch(cache, state, position, near)
            self._near.append(change)
            state, change = self._stretch(cache, state, near, end)
            self._far.append(change)
        return state

    def _stretch(self, cache: Any, state: LayerState, start: int, end: int) -> tuple[LayerState, _Map]:
        """Read tokens on; return the state behind them and their map (A, B)."""
        matrix = state["M"]
        identity = torch.eye(matrix.shape[-2], device=matrix.device)
        # Rows of the batch: from nothing, which gives B, then from every block of columns of the identity, A + B.
        starts = [torch.zeros_like(matrix)]
        for columns in identity.split(matrix.shape[-1], dim=1):
            block = torch.zeros_like(matrix)
            block[..., : columns.shape[1]] = columns
            starts.append(block)
        rows = len(starts)
        running = {name: tensor.expand(rows, *tensor.shape[1:]).clone() for name, tensor in state.items()}
        running["M"] = torch.cat(starts)
        for inputs, given in self._lower(cache, self._tokens[start:end]):
            same = None if given is None else tuple(part.expand(rows, -1, -1, -1) for part in given)
            running = self._branch.write(inputs.expand(rows, -1, -1), running, same)
            self._on_read(inputs.shape[1])
        running = self._finished(running) if end < len(self._tokens) else running
        plain = running["M"][:1]
        blocks = torch.cat([row.unsqueeze(0) - plain for row in running["M"][1:]], dim=-1)
        change = (blocks[..., : matrix.shape[-2]], plain)
        after = {name: tensor[:1] for name, tensor in running.items()}
        return {**after, "M": _apply(change, matrix)}, change

    def _finished(self, state: LayerState) -> LayerState:
        """Return the state with everything written that waits for the end of its segment."""
        memory = self._branch.memory
        return memory.finish(state) if isinstance(memory, LeastSquaresMemory) else state

    def _lower(self, cache: Any, ids: list[int]) -> Iterator[_Inputs]:
        """Yield what enters the memory, `[1, seq, hidden]`, and the values that it is given, chunk by chunk."""
        layer: Any = self._model.model.layers[self.layer]
        for chunk in chunks(ids, self._chunk_size):
            chunk = chunk.to(self._model.device)
            out = self._model.model(chunk, past_key_values=cache, use_cache=True, stop_layer=self.layer)
            states = layer.input_layernorm(out.last_hidden_state)
            embeddings = self._model.model.embed_tokens(chunk)
            yield seen_by_memory(layer.self_attn, states, embeddings), given_values(layer.self_attn, embeddings, chunk)


def _apply(change: _Map, matrix: Tensor) -> Tensor:
    return change[0] @ matrix + change[1]
