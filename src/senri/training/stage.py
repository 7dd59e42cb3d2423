"""One stage of training: an objective, its data, and a trainer, from the last checkpoint to the trained weights."""

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from senri.errors import SenriError
from senri.evaluation.files import make_folder, write_bytes
from senri.evaluation.processes import process_state
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.answers import AnswersOnly
from senri.training.callbacks import MetricsFile, StepBar, StopInOrder
from senri.training.config import Recipe, StageConfig, StageName
from senri.training.distillation import Distillation
from senri.training.frozen_base import FrozenBase, first_trained_layer
from senri.training.language_modelling import LanguageModelling
from senri.training.objective import Objective
from senri.training.parameters import choose_trained
from senri.training.recall.finding import Finding
from senri.training.recall.objective import Recall
from senri.training.recall.values import ValueDecoding
from senri.training.rows import TrainingRows
from senri.training.stage_data import finding_of_stage, solve_values, stage_data
from senri.training.trainer import TRAINED_FILE, SenriTrainer, load_trained, trained_tensors

RESULT_FILE = "stage.json"


@dataclass(frozen=True)
class StageResult:
    """What a stage did.

    Attributes:
        name: of the stage.
        steps: taken in all.
        tokens: read in all, by all processes.
        seconds: of this and earlier runs.
        parameters: how many numbers were trained.
        loss: the mean of the last tenth of its steps.
        start_layer: the first layer that was run in each step.
        finished: whether all its steps are done.
    """

    name: StageName
    steps: int
    tokens: int
    seconds: float
    parameters: int
    loss: float
    start_layer: int
    finished: bool


class Stage:
    """One stage of a run.

    Args:
        name: of the stage.
        recipe: of the run.
        folder: where its checkpoints and its weights lie.
        metrics: the run's metrics file.
        tracking: folder for TensorBoard and others.
    """

    def __init__(self, name: StageName, recipe: Recipe, folder: Path, metrics: Path, tracking: Path) -> None:
        self.name, self.recipe, self.folder, self.metrics, self.tracking = name, recipe, folder, metrics, tracking
        self.config: StageConfig = getattr(recipe.training.stages, name)

    @property
    def result(self) -> StageResult | None:
        """What a finished run of this stage left, or None."""
        try:
            return StageResult(**json.loads((self.folder / RESULT_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_finished(self) -> bool:
        """Whether the stage need not be run."""
        return self.result is not None and (self.folder / TRAINED_FILE).is_file()

    def load(self, model: SenriForCausalLM) -> None:
        """Give a model the weights that the finished stage left."""
        choose_trained(model, self.config.train)
        load_trained(_Holder(model), self.folder / TRAINED_FILE)

    def run(
        self, model: SenriForCausalLM, tokenizer: Any, rows: TrainingRows, identity: str, base: Any = None
    ) -> StageResult:
        """Train; an interrupted run goes on from its last whole checkpoint.

        Args:
            model: trained in place.
            tokenizer: its own.
            rows: what is read.
            identity: of the rows.
            base: where the loss follows one.

        Raises:
            SenriError: a loss or gradient that is not finite, a checkpoint that cannot be written, data or settings
                that do not go together.
        """
        training = self.recipe.training
        choose_trained(model, self.config.train)
        make_folder(self.folder)
        start_layer = self._freeze_below(model, rows, identity)
        stop = StopInOrder()
        data = stage_data(self.recipe, self.config, self.folder, model, tokenizer, rows, half=self._in_bfloat16)
        objective = self._objective(model, base, start_layer)
        if isinstance(objective, ValueDecoding):
            solve_values(objective, data.collator, self.recipe, self.config)
        trainer = SenriTrainer(
            self.config,
            training.curriculum,
            model=objective,
            args=self._arguments(),
            callbacks=[
                stop,
                MetricsFile(self.metrics, self.name, data.per_step),
                StepBar(self.name, data.per_step),
            ],
            train_dataset=data.samples,
            data_collator=data.collator,
        )
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        checkpoint = trainer.last_checkpoint()
        before, began = self._seconds(), time.monotonic()
        with stop.listening():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = before + time.monotonic() - began
        state = trainer.state
        finished = state.global_step >= state.max_steps
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        last = losses[-max(len(losses) // 10, 1) :]
        result = StageResult(
            name=self.name,
            steps=state.global_step,
            tokens=state.global_step * data.per_step,
            seconds=round(seconds, 1),
            parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
            loss=sum(last) / max(len(last), 1),
            start_layer=start_layer,
            finished=finished,
        )
        process = process_state()
        if process.is_main_process:
            write_bytes(self.folder / "seconds", str(seconds).encode())
        tensors = trained_tensors(trainer.model) if finished else {}
        if finished and process.is_main_process:
            write_bytes(self.folder / TRAINED_FILE, safetensors.torch.save(tensors))
            write_bytes(self.folder / RESULT_FILE, json.dumps(dataclasses.asdict(result), indent=2).encode())
        process.wait_for_everyone()
        return result

    def _freeze_below(self, model: SenriForCausalLM, rows: TrainingRows, identity: str) -> int:
        """Let rows bring what enters the first trained layer, where the layers below are frozen; return that layer."""
        rows.frozen_base = None
        training = self.recipe.training
        if not training.frozen_base or self.config.loss == "distillation" or first_trained_layer(model) == 0:
            return 0
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            return 0  # a layer that is spread over processes runs in all of them at once or not at all
        with process_state().main_process_first():  # the others open the files that it made
            rows.frozen_base = FrozenBase(
                model,
                rows.tokens,
                self.folder.parent / "frozen_base",  # stages that start at the same layer share it
                training.frozen_base_dtype,
                identity,
                training.segment_tokens,
                half=self._in_bfloat16,
            )
        return rows.frozen_base.start_layer

    def _objective(self, model: SenriForCausalLM, base: Any, start_layer: int) -> Objective:
        training = self.recipe.training
        if self.config.loss == "distillation":
            return Distillation(model, base)
        if self.config.loss == "values":
            assert training.recall is not None
            values = training.recall.values
            return ValueDecoding(model, start_layer, values.context, values.interference, values.faintest)
        if self.config.loss == "finding":
            assert training.recall is not None
            haystacks = training.recall.haystacks
            finding = finding_of_stage(training.recall.finding, self.config)
            return Finding(model, start_layer, finding, haystacks.kind_names, haystacks.first_weight)
        gradient = training.gradient or model.config.memory_config.gradient
        segments = (model, training.segment_tokens, gradient, training.checkpointing, start_layer)
        if self.config.loss == "recall":
            assert training.recall is not None
            haystacks, kl_weight = training.recall.haystacks, training.recall.answering.kl_weight
            first_weight = haystacks.first_weight
            return Recall(*segments, kinds=haystacks.kind_names, first_weight=first_weight, kl_weight=kl_weight)
        if training.answers_only:
            return AnswersOnly(*segments)
        return LanguageModelling(*segments, base=base, kl_weight=self.config.kl_weight)

    def _arguments(self) -> TrainingArguments:
        training, experiment = self.recipe.training, self.recipe.experiment
        processes = process_state().num_processes
        training.check_processes(processes)
        is_cosine = training.schedule == "cosine"
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.tracking / self.name)
        return TrainingArguments(
            output_dir=str(self.folder),
            per_device_train_batch_size=training.micro_batch_size,
            gradient_accumulation_steps=training.batch_size // (training.micro_batch_size * processes),
            num_train_epochs=self.config.epochs,
            max_steps=self.config.max_steps or -1,
            learning_rate=self.config.learning_rate,
            weight_decay=training.weight_decay,
            adam_beta1=training.betas[0],
            adam_beta2=training.betas[1],
            max_grad_norm=training.max_grad_norm,
            warmup_steps=training.warmup,
            lr_scheduler_type="cosine_with_min_lr" if is_cosine else training.schedule,
            lr_scheduler_kwargs={"min_lr_rate": training.smallest_rate} if is_cosine else {},
            bf16=self._in_bfloat16,
            # Numbered samples are drawn by their seed; their order is that of the curriculum.
            train_sampling_strategy="sequential" if self.config.loss in ("values", "finding", "recall") else "random",
            seed=experiment.seed,
            data_seed=experiment.seed,
            logging_steps=experiment.log_every,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=experiment.save_every,
            save_total_limit=experiment.keep_checkpoints,
            report_to=experiment.report_to or "none",
            remove_unused_columns=False,
            use_cpu=self._on_cpu,
            disable_tqdm=True,
            dataloader_drop_last=True,
            # A memory without gradients of its writes leaves projections without any; keys are solved, not trained.
            ddp_find_unused_parameters=training.gradient == "none" or self.config.loss in ("values", "finding"),
        )

    @property
    def _on_cpu(self) -> bool:
        return self.recipe.experiment.device == "cpu" or not torch.accelerator.is_available()

    @property
    def _in_bfloat16(self) -> bool:
        precision = self.recipe.training.precision
        has_it = not self._on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return precision == "bfloat16" or (precision == "auto" and has_it)

    @property
    def emulates_bfloat16(self) -> bool:
        """Whether a processor without instructions for bfloat16 would compute in it, several times as slowly."""
        has_it = [there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name]
        return self._on_cpu and self._in_bfloat16 and bool(has_it) and not any(has_it)

    def _seconds(self) -> float:
        try:
            return float((self.folder / "seconds").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0.0


class _Holder(torch.nn.Module):
    """A model under the name that objectives give it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


def check_stages(recipe: Recipe, has_memory: bool) -> None:
    """Check that the enabled stages can be run on a model.

    Raises:
        SenriError: a stage trains memories, but the model has none, or no stage is enabled.
    """
    enabled = recipe.training.stages.enabled
    if not enabled:
        raise SenriError("no stage is enabled: set training.stages.<name>.enabled=true for one of them.")
    for name, stage in enabled.items():
        if not has_memory and stage.train != "all":
            raise SenriError(
                f"training.stages.{name} trains memories, but the model has none: set its train to all, or disable it."
            )
