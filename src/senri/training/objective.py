"""Objective: what a trainer runs; a Senri model inside, its loss and other figures out."""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from senri.models.modeling_senri import SenriForCausalLM


class Objective(nn.Module):
    """Base of all objectives.

    Args:
        model: what is trained.
    """

    # FSDP shards by these.
    _no_split_modules: ClassVar[list[str]] = SenriForCausalLM._no_split_modules

    def __init__(self, model: SenriForCausalLM) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return `loss`, the mean over what the batch predicts, and other figures without gradient."""
