"""Watching a memory while it reads: what every token writes, and what the state holds from time to time.

How strongly a token is written is the Frobenius norm of what it alone adds to its head's matrix,

    ||M_t - decay_t M_{t-1}|| = ||beta_t phi(k_t)|| ||v_t - held_t||,

where `held_t` is what the memory already returns for the key, and 0 under the linear rule; the delta rules add only the
difference. It is exact: `held_t` comes from the state just before the token (granularity `token`), or from the one at
the start of its segment, against which a segment's writes are corrected. The decay of older content is not counted as
written. Where a head has several matrices, the norm goes over all of them. Where the tokens of a segment are written
together (type `least_squares`), what each adds follows from all of them, and is known when the segment is full.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.branch import MemoryBranch
from senri.memory.inspection import head_rows
from senri.memory.least_squares import Held, LeastSquaresMemory
from senri.memory.matrix import MatrixMemory
from senri.memory.reading import reciprocal
from senri.memory.scan import Run, scan
from senri.memory.segment_scan import Running
from senri.mixers import AddedMemory, WindowMemory


@dataclass(frozen=True)
class Writes:
    """What a layer's memory wrote for a run of tokens of one sequence, by key/value head.

    Attributes:
        change: how strongly each token was written (see the module), `[heads, seq]`.
        strength: the beta that was used, `[heads, seq]`.
        decay: what each token left of older content, `[heads, seq]`; None for rules without decay.
    """

    change: Tensor
    strength: Tensor
    decay: Tensor | None

    def at_least_one(self) -> "Writes":
        """Return these, or where no token was written, as of one that changes nothing."""
        if self.change.shape[1]:
            return self
        nothing = self.change.new_zeros(len(self.change), 1)
        return Writes(nothing, nothing, None if self.decay is None else torch.ones_like(nothing))


@dataclass(frozen=True)
class HeldState:
    """What a layer's state holds, a number a head; over the matrices of a head that hold something.

    Attributes:
        norm: Frobenius norm of M.
        effective_rank: of M, the mean where a head has several matrices.
        z_norm: Euclidean norm of z; None without z.
    """

    norm: list[float]
    effective_rank: list[float]
    z_norm: list[float] | None


class MemoryTrace:
    """What was recorded since it was last taken. Made by `record_memory`.

    Attributes:
        layers: indices of the layers that write a memory; those that only read another layer's are not among them.
    """

    def __init__(self, model: Any) -> None:
        self._writers = {index: _Writer(index, branch.memory) for index, branch in writing_branches(model).items()}
        self._shares = {
            index: _OutputNorms()
            for index, layer in enumerate(model.model.layers)
            if isinstance(layer.self_attn, AddedMemory)
        }
        self.layers = list(self._writers)

    def take_writes(self) -> dict[int, Writes]:
        """Return what was written since the last call, by layer; a layer that saw no token is left out."""
        return {index: writer.take() for index, writer in self._writers.items() if writer.pieces}

    def take_shares(self) -> dict[int, float]:
        """Return how large memories beside whole attention (combine `add`) were since the last call, by layer.

        It is the mean norm of the memory's output over that of the attention's output, both as they are added to the
        residual.
        """
        return {index: norms.take() for index, norms in self._shares.items()}


@contextmanager
def record_memory(model: Any) -> Iterator[MemoryTrace]:
    """Record what a model's memories write within the block. Outputs stay bit-equal, and the model as it was.

    Args:
        model: a `SenriForCausalLM`; it should read one sequence at a time.

    Raises:
        SenriError: no layer writes a memory, or one is not made of matrices.
    """
    trace = MemoryTrace(model)
    branches = writing_branches(model)
    with ExitStack() as stack:
        for index, writer in trace._writers.items():
            stack.callback(branches[index].inputs.register_forward_hook(writer.expect).remove)
            stack.enter_context(writer.memory.watch(writer.see))
        for index, norms in trace._shares.items():
            mixer = model.model.layers[index].self_attn
            stack.callback(mixer.memory_o_proj.register_forward_hook(norms.see_memory).remove)
            stack.callback(mixer.o_proj.register_forward_hook(norms.see_attention).remove)
        yield trace


def writing_branches(model: Any) -> dict[int, MemoryBranch]:
    """Return the memories that have a state of their own, by layer index.

    Raises:
        SenriError: there is none, or one is not made of matrices.
    """
    every = model.model.memory_branches() if hasattr(getattr(model, "model", None), "memory_branches") else {}
    branches = {index: branch for index, branch in every.items() if isinstance(branch, MemoryBranch)}
    if not branches:
        raise SenriError("the model has no memory to look into: name a converted model that has memory layers.")
    for index, branch in branches.items():
        if not isinstance(branch.memory, (MatrixMemory, LeastSquaresMemory)):
            raise SenriError(
                f"the memory of layer {index} has the type {branch.config.type!r}, which is not made of matrices: "
                f"leave this measurement out."
            )
    return branches


def gates(model: Any) -> dict[int, list[float]]:
    """Return the memory's share of each query head's output in the layers that mix by a gate, by layer."""
    mixers = {index: layer.self_attn for index, layer in enumerate(model.model.layers)}
    return {
        index: torch.sigmoid(mixer.memory_gate.weight.detach().float()).tolist()
        for index, mixer in mixers.items()
        if isinstance(mixer, WindowMemory)
    }


def held_state(state: LayerState, heads: int) -> HeldState:
    """Return what the committed matrices of a state of one row hold.

    Args:
        state: of one layer. Writes of its unfinished segment are not in M yet.
        heads: key/value heads of the memory.
    """
    by_head: list[list[Any]] = [[] for _ in range(heads)]
    for row in head_rows({0: state}, singular_values=0):
        by_head[row.head].append(row)
    squares = [sum(row.norm**2 for row in rows) for rows in by_head]
    z_squares = [sum((row.z_norm or 0.0) ** 2 for row in rows) for rows in by_head]
    ranks = [[row.effective_rank for row in rows if row.norm > 0] for rows in by_head]
    return HeldState(
        norm=[square**0.5 for square in squares],
        effective_rank=[sum(ones) / len(ones) if ones else 0.0 for ones in ranks],
        z_norm=[square**0.5 for square in z_squares] if "z" in state else None,
    )


class _Writer:
    """Records one layer's writes."""

    def __init__(self, layer: int, memory: Any) -> None:
        self.layer, self.memory = layer, memory
        self.pieces: list[Writes] = []
        self._awaited = 0
        self._early: int | None = None  # tokens of before the recording that are told of with its own

    def expect(self, _: Any, args: tuple[Any, ...], output: tuple[Any, Any]) -> None:
        """See how many tokens the memory is about to scan."""
        tokens = output[0]
        seq = tokens.k.shape[2]
        if self._early is None:
            together = isinstance(self.memory, LeastSquaresMemory)
            self._early = int(args[1]["count"][0]) % self.memory.config.segment_length if together else 0
        if self.memory.frozen:
            nothing = torch.zeros(self.memory.num_key_value_heads, seq)
            has_decay = self.memory.config.rule == "gated_delta"
            self.pieces.append(Writes(nothing, nothing, torch.ones_like(nothing) if has_decay else None))
        else:
            self._awaited = seq

    def see(self, run: Run, before: Any) -> None:
        """Record a run.

        Layers that read this state scan the same tokens again; those are no longer awaited then.
        """
        if self._awaited:
            assert run.keys is not None
            if isinstance(self.memory, LeastSquaresMemory):  # told once a call, of the segments that it finishes
                self._awaited = 0
                writes = _written_together(self.memory, run, before)
                early = min(self._early or 0, writes.change.shape[1])
                self._early = (self._early or 0) - early
                self.pieces.append(Writes(writes.change[:, early:], writes.strength[:, early:], None))
            else:
                self._awaited -= run.keys.shape[2]
                self.pieces.append(_writes(self.memory, run, before))

    def take(self) -> Writes:
        pieces, self.pieces = self.pieces, []
        decays = [piece.decay for piece in pieces if piece.decay is not None]
        return Writes(
            torch.cat([piece.change for piece in pieces], dim=1),
            torch.cat([piece.strength for piece in pieces], dim=1),
            torch.cat(decays, dim=1) if decays else None,
        )


class _OutputNorms:
    """Sums the norms of a memory's and an attention's output over tokens."""

    def __init__(self) -> None:
        self._memory = self._attention = 0.0

    def see_memory(self, _: Any, args: tuple[Any, ...], output: Tensor) -> None:
        self._memory += float(output.detach().float().norm(dim=-1).sum())

    def see_attention(self, _: Any, args: tuple[Any, ...], output: Tensor) -> None:
        self._attention += float(output.detach().float().norm(dim=-1).sum())

    def take(self) -> float:
        memory, attention = self._memory, self._attention
        self._memory = self._attention = 0.0
        return memory / attention if attention else 0.0


@torch.no_grad()
def _writes(memory: MatrixMemory, run: Run, before: Running) -> Writes:
    """Say what a run writes; its parts, which are state heads of their own there, are put together by head."""
    assert run.keys is not None and run.values is not None and run.strength is not None
    new = run.values
    if memory.config.rule != "linear":
        new = new - _held(memory, run, before)
    change = run.strength * run.keys.norm(dim=-1) * new.norm(dim=-1) * run.scale
    parts = (memory.num_key_value_heads, -1)
    # Shares of the parts add up to 1, so their strengths add up to beta, and what they fade by multiplies to the decay.
    return Writes(
        change[0].unflatten(0, parts).norm(dim=1).cpu(),
        run.strength[0].unflatten(0, parts).sum(dim=1).cpu(),
        None if run.fading is None else run.fading[0].unflatten(0, parts).prod(dim=1).cpu(),
    )


@torch.no_grad()
def _written_together(memory: LeastSquaresMemory, run: Run, held: Held) -> Writes:
    """Say what the tokens of whole segments write."""
    assert run.keys is not None and run.values is not None and run.strength is not None
    found = [run.strength[0, :, :0]]
    segments = (part.split(memory.config.segment_length, dim=2) for part in (run.keys, run.values, run.strength))
    for keys, values, strength in zip(*segments, strict=True):
        change = memory.change(held, keys, values, strength)
        found.append((change.directions.norm(dim=-1) * change.values.norm(dim=-1))[0])
        held = memory.changed(held, keys, strength, change)
    return Writes(torch.cat(found, dim=1).cpu(), run.strength[0].cpu(), None)


def _held(memory: MatrixMemory, run: Run, before: Running) -> Tensor:
    """Return what the state holds for each key when it is written, `[batch, heads, seq, value_dim]`."""
    # Reading with the keys as queries, before the own write is visible, gives it for all tokens at once.
    config = replace(memory.config, order="retrieve_then_update")
    held, _ = scan(replace(run, queries=run.keys), before, config)
    assert held is not None
    if memory.config.normaliser == "denominator":
        # Decay has worn numerator and denominator alike.
        return held[..., :-1] * reciprocal(held[..., -1:], memory.config.eps)
    # Without a denominator every token is a segment of its own (see `check_stable`): only its own decay comes between.
    return held if run.fading is None else held * run.fading.unsqueeze(-1)
