"""GrowingLength: texts grow longer each time the answers are right often enough."""

from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from senri.training.recall.config import RecallConfig


class GrowingLength(TrainerCallback, ExportableState):
    """How long texts are now; kept in checkpoints, so that a run that goes on has the same texts.

    Args:
        config: of recall training.
    """

    def __init__(self, config: RecallConfig) -> None:
        self.config = config
        self.length = float(config.first_length)
        self.share = 0.0

    def note(self, figures: dict[str, Tensor]) -> None:
        """Take in what an objective found: its share of right answer tokens, `correct`; grow if it is time."""
        if "correct" not in figures:
            return
        smoothing = self.config.smoothing
        self.share = smoothing * self.share + (1 - smoothing) * float(figures["correct"])
        if self.share > self.config.phase_at(self.length).passed_at:
            self.length = min(self.length * self.config.growth, float(self.config.longest))
            # The longer texts must prove themselves before the next growth.
            self.share = self.config.phase_at(self.length).passed_at * self.config.smoothing

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {"length": self.length, "share": self.share}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take what the checkpoint kept."""
        stateful: Any = state.stateful_callbacks  # a mapping by class name, whatever its annotation says
        kept = stateful.get(type(self).__name__)
        if isinstance(kept, dict):
            self.length, self.share = kept["attributes"]["length"], kept["attributes"]["share"]
