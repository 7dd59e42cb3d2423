"""What goes on beside the steps: stopping in order, a line of metrics for each, and a bar with tokens a second."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from senri.evaluation.files import write_bytes


class StopInOrder(TrainerCallback):
    """After Ctrl-C or SIGTERM the step at hand is finished, a checkpoint is written and training ends."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block the signals are noted; a second one stops at once. Only the main thread hears signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, _number: int, _frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask the trainer to save and to stop."""
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control


class MetricsFile(TrainerCallback):
    """One line of JSON for every log, in `metrics.jsonl`.

    A run that goes on from a checkpoint first drops the lines of later steps, which it will write again.

    Args:
        path: the file.
        stage: its name stands in every line.
        tokens_per_step: of all processes.
    """

    def __init__(self, path: Path, stage: str, tokens_per_step: int) -> None:
        self.path, self.stage, self.tokens_per_step = path, stage, tokens_per_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what was logged after the checkpoint."""
        if not state.is_world_process_zero or not self.path.is_file():
            return
        kept = [
            line
            for line in read_metrics(self.path)
            if line["stage"] != self.stage or line.get("step", 0) <= state.global_step
        ]
        write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append a line."""
        if state.is_world_process_zero and logs and "loss" in logs:
            line = {
                "stage": self.stage,
                "step": state.global_step,
                "tokens": state.global_step * self.tokens_per_step,
                "time": round(time.time(), 3),
                **logs,
            }
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`; a last line that a stop cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict) and "stage" in line]


_SHOWN_ELSEWHERE = ("loss", "grad_norm", "learning_rate", "epoch")


class StepBar(TrainerCallback):
    """A bar with the loss, tokens a second, and the time left.

    Args:
        stage: what the bar says.
        tokens_per_step: of all processes; 0 where they differ.
    """

    def __init__(self, stage: str, tokens_per_step: int) -> None:
        self.stage, self.tokens_per_step = stage, tokens_per_step
        self._bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar where an earlier run stopped."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.stage, unit="step", dynamic_ncols=True
            )
            self._begin, self._first = time.monotonic(), state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move on."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss."""
        if self._bar is not None and logs and "loss" in logs:
            steps = state.global_step - self._first
            rate = steps * self.tokens_per_step / max(time.monotonic() - self._begin, 1e-9)
            figures = {name: value for name, value in logs.items() if name not in _SHOWN_ELSEWHERE}
            shown = [f"loss {logs['loss']:.4f}", *(f"{name} {value:.4g}" for name, value in figures.items())]
            if self.tokens_per_step:
                shown.append(f"{rate:,.0f} tokens/s")
            self._bar.set_postfix_str(", ".join(shown))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
