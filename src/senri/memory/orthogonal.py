"""OrthogonalBasisMemory: one memory per vector of an orthogonal basis of the key space; trained as a single memory."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.features import apply_feature_map
from senri.memory.matrix import MatrixMemory
from senri.memory.sparse import BY_PART, from_dense, is_sparse, to_dense
from senri.memory.typed import check_at_least

_PIECE = 512
"""Tokens routed at a time: features of a routed token are `key_dim` times as wide, so a long call goes in pieces."""
_ORTHOGONAL_WITHIN = 1e-4
"""How far the product of a basis with its transpose may be from the identity, in any entry."""


@dataclass
class OrthogonalOptions:
    """Options of `OrthogonalBasisMemory`.

    Args:
        top_k: basis memories that a query reads, those of its largest components; None for all.
        weighting: `component` weighs a basis memory by the size of the query's component, `equal` weighs all alike.
        basis: `identity`, or `eigen` to take the eigenvectors of the keys' covariance at conversion.
    """

    top_k: int | None = None
    weighting: Literal["component", "equal"] = "component"
    basis: Literal["identity", "eigen"] = "identity"

    def __post_init__(self) -> None:
        check_at_least("memory.options", {"top_k": self.top_k}, 1)


class OrthogonalBasisMemory(MatrixMemory):
    """A key is written to the memory of its largest |component| in the basis; a query reads its top-k by |component|.

    While training it is one `TensorMemory`; in evaluation it is routed, with the same weights. Routing is a feature
    map: a key's phi stands in the block of its basis vector, a query's phi in all blocks that it reads, times their
    weights. So the rules hold block by block (a delta write corrects what its own block holds), and with `top_k` None
    and equal weights the linear rule reads exactly what the single memory reads.

    State in evaluation: as `MatrixMemory` with `parts` = `key_dim`, stored sparsely (`senri.memory.sparse`), so that a
    basis memory that was never written takes no room. State in training: that of a single memory.

    Parameters: `basis` `[num_key_value_heads, key_dim, key_dim]`, a basis vector a column; not trained, because a
    gradient step would not leave it orthogonal.
    """

    Options = OrthogonalOptions
    options: OrthogonalOptions

    def make_parameters(self) -> None:
        """Create the basis."""
        super().make_parameters()
        size = (self.num_key_value_heads, self.key_dim, self.key_dim)
        self.basis = nn.Parameter(torch.empty(size), requires_grad=False)
        if self.options.basis == "eigen" and self.config.calibration == "whiten":
            raise SenriError(
                "memory.options.basis 'eigen' has no meaning for whitened keys, which vary alike in all directions: "
                "take memory.calibration 'none' or the basis 'identity'."
            )
        if self.options.top_k is not None and self.options.top_k > self.key_dim:
            raise SenriError(
                f"memory.options.top_k is {self.options.top_k}, but keys of {self.key_dim} numbers have as many basis "
                f"memories: take at most {self.key_dim}, or null for all."
            )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the basis to the identity: a key's components are its own numbers."""
        super().reset_parameters()
        self.basis.copy_(torch.eye(self.key_dim, device=self.basis.device).expand_as(self.basis))

    @torch.no_grad()
    def set_basis(self, basis: Tensor) -> None:
        """Take an orthogonal basis, `[num_key_value_heads, key_dim, key_dim]` (or one `[key_dim, key_dim]` for all).

        Raises:
            SenriError: another shape, or columns that are not orthonormal.
        """
        if basis.shape not in (self.basis.shape, self.basis.shape[1:]):
            raise SenriError(f"the basis has shape {tuple(basis.shape)}, but it must be {tuple(self.basis.shape)}.")
        wide = basis.double()
        excess = (wide.mT @ wide - torch.eye(self.key_dim, dtype=torch.float64, device=wide.device)).abs().max()
        if not excess <= _ORTHOGONAL_WITHIN:
            raise SenriError(f"the basis is not orthogonal (off by {float(excess):.2g}): give orthonormal columns.")
        self.basis.copy_(basis.expand_as(self.basis))

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the empty state; reading it gives zeros."""
        state = super().init_state(batch_size, device)
        if self.training:
            return state
        heads, width = self.num_key_value_heads, self.feature_width
        for name in BY_PART:
            if name in state:
                rows, rest = state[name].shape[0], state[name].shape[3:]
                state[name] = torch.zeros(rows, heads, self.key_dim, width, *rest, device=device)
        return state if torch.compiler.is_compiling() else from_dense(state)

    def allocate(self, state: LayerState) -> LayerState:
        """Return the state with room for every basis memory."""
        return to_dense(state)

    def read(self, q: Tensor, state: LayerState) -> Tensor:
        """Read every query from the same state: `[batch, num_heads, seq, value_dim]`."""
        routed = self._blocks(state)
        return torch.cat([super(OrthogonalBasisMemory, self).read(piece, routed) for piece in q.split(_PIECE, 2)], 2)

    def _scan(
        self,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        state: LayerState,
        beta: Tensor | None,
        decay: Tensor | None,
        mask: Tensor | None,
        at_once: bool = False,
    ) -> tuple[Tensor | None, LayerState]:
        if self.training:
            return super()._scan(q, k, v, self._single(state), beta, decay, mask, at_once)
        if k.shape[2] == 0:
            return (None if q is None else q.new_zeros(*q.shape[:3], self.value_dim)), state
        running, outs = self._blocks(state), []
        length = k.shape[2] if at_once else _PIECE
        for start in range(0, k.shape[2], length):
            part = slice(start, start + length)
            pieces = [x if x is None else x[:, :, part] for x in (q, k, v, beta, decay)]
            masked = None if mask is None else mask[:, part]
            q_piece, k_piece, v_piece, beta_piece, decay_piece = pieces
            assert k_piece is not None and v_piece is not None
            out, running = super()._scan(q_piece, k_piece, v_piece, running, beta_piece, decay_piece, masked, at_once)
            outs.append(out)
        new = self._unblocked(running)
        new = from_dense(new) if is_sparse(state) else new
        return (None if q is None else torch.cat([out for out in outs if out is not None], dim=2)), new

    def _features(self, x: Tensor, side: str) -> Tensor:
        """Calibrate, apply phi, and in evaluation put it into the blocks of the basis vectors."""
        calibrated = self._calibrated(x, side)
        features = apply_feature_map(calibrated, self.config)
        if self.training:
            return features
        basis = self.basis.to(x.dtype).repeat_interleave(x.shape[1] // self.num_key_value_heads, dim=0)
        size = (calibrated @ basis).abs()
        weights = self._write_weights(size) if side == "key" else self._read_weights(size)
        return (weights.unsqueeze(-1) * features.unsqueeze(-2)).flatten(-2)

    def _write_weights(self, size: Tensor) -> Tensor:
        return F.one_hot(size.argmax(dim=-1), self.key_dim).to(size.dtype)

    def _read_weights(self, size: Tensor) -> Tensor:
        weights = torch.ones_like(size) if self.options.weighting == "equal" else size
        if self.options.top_k is None or self.options.top_k == self.key_dim:
            return weights
        largest = size.topk(self.options.top_k, dim=-1).indices
        return torch.zeros_like(weights).scatter(-1, largest, weights.gather(-1, largest))

    def _blocks(self, state: LayerState) -> LayerState:
        """Return the state with the blocks of a head one under the other, as the scans take it."""
        if self.training:
            return self._single(state)
        dense = to_dense(state)
        if dense["M"].dim() == 4:
            raise SenriError(
                "this memory state was made in training, where the memory is not routed: call reset_memory() (or begin "
                "a new state) after switching to eval()."
            )
        return {name: x.flatten(2, 3) if name in BY_PART else x for name, x in dense.items()}

    def _unblocked(self, state: LayerState) -> LayerState:
        return {name: x.unflatten(2, (self.key_dim, -1)) if name in BY_PART else x for name, x in state.items()}

    def _single(self, state: LayerState) -> LayerState:
        """Return a routed state as the single memory that its blocks add up to (exact under the linear rule)."""
        dense = to_dense(state)
        if dense["M"].dim() == 4:
            return dense
        return {name: x.sum(dim=2) if name in BY_PART else x for name, x in dense.items()}
