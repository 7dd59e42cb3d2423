"""Objective: what a trainer runs; a Senri model inside, its loss and other figures out."""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from senri.models.modeling_senri import SenriForCausalLM
from senri.training.config import Gradient


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


class SegmentedObjective(Objective):
    """An objective that runs long sequences in segments, the state carried on.

    Args:
        model: what is trained.
        segment_tokens: tokens of one forward pass.
        gradient: `full` lets gradients flow through the carried state; otherwise it is detached at every border.
        checkpointing: run segments again in the backward pass.
        start_layer: the first layer that runs; above 0, batches bring what enters it.
    """

    def __init__(
        self,
        model: SenriForCausalLM,
        segment_tokens: int,
        gradient: Gradient,
        checkpointing: bool,
        start_layer: int = 0,
    ) -> None:
        super().__init__(model)
        self.segment_tokens, self.gradient, self.checkpointing = segment_tokens, gradient, checkpointing
        self.start_layer = start_layer
