"""TokenCodes: a value for each token that no other token resembles, and back from a read to tokens."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.calibration import whitening_matrix
from senri.memory.turns import by_sign, in_their_best_turns, turns

_BANDWIDTH = 0.5
"""Standard deviation of a frequency, for embeddings with a variance of 1 in every direction: two of them that are more
than about five apart, as nearly all tokens are, get codes that have nothing in common."""


class TokenCodes(nn.Module):
    """Random Fourier features of a token's embedding: cosines and sines of `width` / 2 random projections of it.

    Embeddings of two digits are nearly the same, and a read that is a little off would say the wrong one. The likeness
    of two codes falls with the distance d of their whitened embeddings as exp(-d^2 / 8) (Rahimi & Recht 2007, equation
    2), so that different tokens are as good as orthogonal. The frequencies are not learnt.

    Args:
        hidden_size: of the embeddings.
        width: of a code: heads x value_dim.
        sharpness: where it starts: factor of cosines in the softmax.
        embedding_scale: standard deviation of embeddings' entries before `initialise`.
        turn_count: in so many ways a code may have been turned where it was written (`senri.memory.turns`).

    Raises:
        SenriError: an odd width.
    """

    def __init__(
        self, hidden_size: int, width: int, sharpness: float, embedding_scale: float, turn_count: int = 1
    ) -> None:
        super().__init__()
        if width % 2:
            raise SenriError(
                f"memory.combine 'copy' makes values of cosines and sines in pairs, but all heads have {width} numbers "
                f"together: set memory.value_dim to an even number."
            )
        self.start, self.embedding_scale, self.turn_count = sharpness, embedding_scale, turn_count
        self.frequencies = nn.Parameter(torch.empty(width // 2, hidden_size))
        self.sharpness = nn.Parameter(torch.empty(1))
        self._kept: tuple[Any, Tensor] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the frequencies for embeddings of independent entries, and the sharpness to its start."""
        self.frequencies.copy_(self._random() / self.embedding_scale)
        nn.init.constant_(self.sharpness, self.start)

    @torch.no_grad()
    def initialise(self, embeddings: Tensor) -> None:
        """Set the frequencies so that every direction of the embeddings tells tokens apart.

        Args:
            embeddings: of all tokens, `[vocabulary, hidden_size]`.
        """
        centred = embeddings.double().cpu()
        centred = centred - centred.mean(0)
        self.frequencies.copy_(self._random() @ whitening_matrix(centred.T @ centred / len(centred)))

    def _random(self) -> Tensor:
        """Return frequencies for white embeddings; the same in all layers, which may share a state."""
        generator = torch.Generator().manual_seed(0)
        return _BANDWIDTH * torch.randn(self.frequencies.shape, generator=generator, dtype=torch.float64)

    def codes(self, embeddings: Tensor) -> Tensor:
        """Return the codes of tokens with a mean square of 1, `[..., width]` in float32.

        Args:
            embeddings: `[..., hidden_size]`.
        """
        with torch.autocast(embeddings.device.type, enabled=False):  # a rounded phase would be another token's
            phases = F.linear(embeddings.detach().float(), self.frequencies.float())
        return math.sqrt(2) * torch.cat([phases.cos(), phases.sin()], dim=-1)

    def forward(
        self, read: Tensor, embeddings: Tensor, shown: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return log-probabilities of tokens, `[..., vocabulary]` in float32, the read turned back, and how like it is
        to what was written right behind each token that is shown, `[..., shown]` (of `in_their_best_turns`).

        A token is as likely as the one of its turns is that is most like the read. Where equal tokens were written in
        several places, the read is like each of them and not like their sum; turned back it is as the likeliest was.

        Args:
            read: `[..., width]`.
            embeddings: of all tokens, `[vocabulary, hidden_size]`.
            shown: tokens, `[..., shown]`, -1 for none; None where nobody asks what was written behind them.
        """
        reads = F.normalize(read.float(), dim=-1).reshape(-1, read.shape[-1])
        asked = None if shown is None else shown.long().reshape(len(reads), -1)
        likeness, turn, behind = in_their_best_turns(reads, self._table(embeddings), asked)
        said = (self.sharpness.float() * likeness).log_softmax(-1).view(*read.shape[:-1], -1)
        back = read * turns(self.turn_count, read.shape[-1], read.device)[turn].view_as(read).to(read.dtype)
        return said, back, None if behind is None else behind.view(*read.shape[:-1], -1)

    def likeness(self, reads: Tensor, codes: Tensor) -> Tensor:
        """Return products of reads `[tokens, width]` with codes `[codes, width]`, each in its likeliest turn:
        `[tokens, codes]`.
        """
        return in_their_best_turns(reads, by_sign(codes, self.turn_count))[0]

    def _table(self, embeddings: Tensor) -> Tensor:
        """Return the codes of all tokens with a length of 1, as `by_sign` has them; kept until something changes."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self.frequencies.requires_grad):
            return self._codes_by_sign(embeddings)
        parts = (self.frequencies, embeddings)
        made_of = [(part.data_ptr(), part._version, part.dtype, part.device) for part in parts]
        if self._kept is None or self._kept[0] != made_of:
            self._kept = made_of, self._codes_by_sign(embeddings).detach()
        return self._kept[1]

    def _codes_by_sign(self, embeddings: Tensor) -> Tensor:
        return by_sign(F.normalize(self.codes(embeddings), dim=-1), self.turn_count)
