"""Saying: mixes the tokens that a memory found into what the model says."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HARDLY = -7.0
"""Logit of a share that is not learnt yet, the end's or that which what follows takes off a penalty: one in a thousand.
"""


class Saying(nn.Module):
    """A mixture of two distributions over the next token: the memory's and the model's own.

    What a memory found may be a word that cannot come here: something else was near. The model knows what can come,
    and not which of it is true. So the memory's distribution is multiplied by a power of the model's first, as a noisy
    channel is by a language model (Shannon 1948; a log-linear interpolation, Klakow 1998).

    A question names what it is about, and the text names it where the answer stands. So tokens that the window shows
    are said less, as by a repetition penalty (Keskar et al. 2019, arXiv 1909.05858, section 4.1), but only of the
    memory's and by as much as a state says: an answer has none of the question's words, and a number its digits again.
    But many answers begin with a word that every question has ("the", "in"). Where codes are turned by their places, a
    read says what stands right behind each token that it found. If that is none that the window shows, an answer may
    begin there, and the token loses the less, the more clearly it was read.

    A text goes on where an answer ends, so that no read says the end. A state and what was read there do: the memory
    gives the end of text a share of what it says, whichever of the tokens that it found the window shows.

    Args:
        prior: where that power starts.
        hidden_size: of the states.
        width: of a read.
        end_token: that ends an answer; None for none.
        waits: whether the window shows tokens that are not written yet.
        turns: whether codes are turned by their places.
    """

    def __init__(
        self, prior: float, hidden_size: int, width: int, end_token: int | None, waits: bool, turns: bool
    ) -> None:
        super().__init__()
        self.start, self.end_token = prior, end_token
        self.prior = nn.Parameter(torch.empty(1))
        self.sure = nn.Parameter(torch.empty(1))
        self.end = None if end_token is None else nn.Linear(hidden_size + width, 1)
        self.repetition = nn.Linear(hidden_size, 1) if waits else None
        self.followed = nn.Linear(1, 1) if waits and turns else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the power to its start; how strongly the memory is heard does not go by how sure it is, nor what it says
        by what the window shows or what stands behind that, and hardly anything ends.
        """
        nn.init.constant_(self.prior, self.start)
        nn.init.zeros_(self.sure)
        if self.repetition is not None:
            nn.init.zeros_(self.repetition.weight)
            nn.init.zeros_(self.repetition.bias)
        if self.followed is not None:
            nn.init.zeros_(self.followed.weight)
            nn.init.constant_(self.followed.bias, -_HARDLY)
        if self.end is not None:
            nn.init.zeros_(self.end.weight)
            nn.init.constant_(self.end.bias, _HARDLY)

    def shown(self, seen: Tensor, recent: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return by how much log-probabilities of tokens that the window shows are lowered, `[..., 1]`, and these; None
        for a memory that does not wait.

        The end of text is none of them: it ends an answer however many messages of a chat have ended before.

        Args:
            seen: states, `[..., hidden_size]`.
            recent: tokens that are not written yet, `[..., late]`, -1 for none.
        """
        if self.repetition is None:
            return None
        if self.end_token is not None:
            recent = recent.masked_fill(recent == self.end_token, -1)
        return self.repetition(seen), recent

    def ending(self, seen: Tensor, read: Tensor) -> Tensor | None:
        """Return logits of the end's share, `[..., 1]`; None where nothing ends.

        Args:
            seen: states, `[..., hidden_size]`.
            read: `[..., width]`.
        """
        return None if self.end is None else cast(Tensor, self.end(torch.cat([seen, read.to(seen.dtype)], dim=-1)))

    def forward(
        self,
        found: Tensor,
        alone: Tensor,
        strength: Tensor,
        ending: Tensor | None,
        shown: tuple[Tensor, Tensor] | None,
        behind: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the memory says where the model speaks, and the logit of its share.

        A read may be large and say nothing clearly, as where several things were found at once.

        Args:
            found: log-probabilities of what was read, `[..., vocabulary]`, float32.
            alone: those of the model without its memory.
            strength: logits of the share `[..., 1]`, from the hidden state and the size of the read.
            ending: of `ending`.
            shown: of `shown`.
            behind: how like the read what stands behind each of these is, `[..., late]`; None where codes do not turn.
        """
        possible = self.prior.float() * alone
        found = found + possible
        if shown is not None:
            lowered = found - self._lowered(*shown, behind, found.shape[-1])
            # What tokens lose goes to others that were read, not to the end, whose share is of all of them.
            found = lowered + (found.logsumexp(-1, keepdim=True) - lowered.logsumexp(-1, keepdim=True))
        if ending is not None:
            found = found + F.logsigmoid(-ending.float())
            end = torch.full_like(ending, self.end_token or 0, dtype=torch.long)
            share = F.logsigmoid(ending.float()) + possible.gather(-1, end)
            found = found.scatter(-1, end, torch.logaddexp(found.gather(-1, end), share))
        found = found.log_softmax(-1)
        return found, strength + self.sure.float() * found.amax(-1, keepdim=True)

    def _lowered(self, penalty: Tensor, recent: Tensor, behind: Tensor | None, vocabulary: int) -> Tensor:
        """Return by how much each token is lowered, `[..., vocabulary]`."""
        penalty = penalty.float().expand(recent.shape)
        if self.followed is not None and behind is not None:
            weight, bias = self.followed.weight[0].float(), self.followed.bias.float()
            penalty = penalty * torch.sigmoid(weight * behind + bias)
        none = penalty.new_zeros(*recent.shape[:-1], vocabulary + 1)  # the last one is for -1
        places = recent.long() % (vocabulary + 1)
        return none.scatter_reduce(-1, places, penalty, "mean", include_self=False)[..., :-1]


def mixture(found: Tensor, alone: Tensor, strength: Tensor) -> Tensor:
    """Return log-probabilities of a mixture in which `found` has the share sigmoid(`strength`)."""
    return torch.logaddexp(F.logsigmoid(strength) + found, F.logsigmoid(-strength) + alone)
