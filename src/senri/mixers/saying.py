"""Saying: mixes the tokens that a memory found into what the model says."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Saying(nn.Module):
    """A mixture of two distributions over the next token: the memory's and the model's own.

    What a memory found may be a word that cannot come here: something else was near. The model knows what can come,
    and not which of it is true. So the memory's distribution is multiplied by a power of the model's first, as a noisy
    channel is by a language model (Shannon 1948; a log-linear interpolation, Klakow 1998).

    Args:
        prior: where that power starts.
    """

    def __init__(self, prior: float) -> None:
        super().__init__()
        self.start = prior
        self.prior = nn.Parameter(torch.empty(1))
        self.sure = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the power to its start; how strongly the memory is heard does not go by how sure it is."""
        nn.init.constant_(self.prior, self.start)
        nn.init.zeros_(self.sure)

    def forward(self, found: Tensor, alone: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the memory says where the model speaks, and the logit of its share.

        A read may be large and say nothing clearly, as where several things were found at once.

        Args:
            found: log-probabilities of what was read, `[..., vocabulary]`, float32.
            alone: those of the model without its memory.
            strength: logits of the share `[..., 1]`, from the hidden state and the size of the read.
        """
        found = (found + self.prior.float() * alone).log_softmax(-1)
        return found, strength + self.sure.float() * found.amax(-1, keepdim=True)


def mixture(found: Tensor, alone: Tensor, strength: Tensor) -> Tensor:
    """Return log-probabilities of a mixture in which `found` has the share sigmoid(`strength`)."""
    return torch.logaddexp(F.logsigmoid(strength) + found, F.logsigmoid(-strength) + alone)
