"""What a training run is made of, typed and checked: the sections `model`, `training` and `experiment` of a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from senri.errors import SenriError, nearest
from senri.models.hand_built import MODELS
from senri.training.recall.config import RecallConfig

Train = Literal["values", "finding", "hearing", "answering", "memory", "mixers", "all"]
Loss = Literal["distillation", "values", "finding", "language_model", "recall"]
Gradient = Literal["full", "segment", "none"]
StageName = Literal["distill", "memory", "full"]
STAGES: tuple[StageName, ...] = ("distill", "memory", "full")


@dataclass
class ModelConfig:
    """What the section `model` holds; `config/model.yaml` says what each is.

    Raises:
        SenriError: not exactly one of preset, create and folder, or a field that belongs to another of them.
    """

    preset: str | None
    base_model_name: str | None
    create: str | None
    folder: str | None
    changes: dict[str, Any]
    tokenizer: str | None
    calibration_text: str | None
    dtype: Literal["float32", "bfloat16", "float16"]

    def __post_init__(self) -> None:
        ways = {"preset": self.preset, "create": self.create, "folder": self.folder}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none of them"
            raise SenriError(f"model names {said}, but it must name one of preset, create and folder.")
        if self.create is not None:
            if self.create not in MODELS:
                raise SenriError(f"model.create is {self.create!r}: {nearest(self.create, MODELS)}")
            if self.tokenizer is None:
                raise SenriError("model.create makes a model without a tokenizer: name one as model.tokenizer.")
        elif self.tokenizer is not None:
            raise SenriError(f"model.tokenizer is for model.create; {given[0]} brings its own: leave it out.")
        if self.preset is None and (self.base_model_name is not None or self.calibration_text is not None):
            raise SenriError("model.base_model_name and model.calibration_text go with model.preset: leave them out.")
        if self.folder is not None and self.changes:
            raise SenriError("model.changes goes with model.preset or model.create: a folder's model is as it is.")


@dataclass
class StageConfig:
    """One stage of training; `config/training.yaml` says what each field is.

    Raises:
        SenriError: a number out of range.
    """

    enabled: bool
    epochs: float
    max_steps: int | None
    learning_rate: float
    gate_learning_rate: float
    train: Train
    loss: Loss
    kl_weight: float

    def __post_init__(self) -> None:
        _check_above("", self, ("epochs", "learning_rate", "gate_learning_rate"), 0)
        if self.max_steps is not None:
            _check_least("", self, ("max_steps",), 1)
        if not 0 <= self.kl_weight <= 1:
            raise SenriError(f"kl_weight is {self.kl_weight}, but it must be from 0 to 1.")
        for loss, trains in (("values", ("values",)), ("finding", ("finding", "hearing")), ("recall", ("answering",))):
            if (self.loss == loss) != (self.train in trains) or (self.loss == loss and self.max_steps is None):
                wanted = " or ".join(trains)
                raise SenriError(f"the loss {loss} has samples without end: set max_steps, and train {wanted}.")
        if self.loss == "distillation" and (self.kl_weight or self.train == "all"):
            raise SenriError("the loss distillation trains mixers towards the base's: set kl_weight 0, train mixers.")


@dataclass
class StagesConfig:
    """The three stages, in their order."""

    distill: StageConfig
    memory: StageConfig
    full: StageConfig

    @property
    def enabled(self) -> dict[StageName, StageConfig]:
        """The stages that are run, in their order."""
        stages: dict[StageName, StageConfig] = {name: getattr(self, name) for name in STAGES}
        return {name: stage for name, stage in stages.items() if stage.enabled}


@dataclass
class TrainingConfig:
    """What the section `training` holds; `config/training.yaml` says what each is.

    Raises:
        SenriError: a number out of range, or two that do not go together.
    """

    batch_size: int
    micro_batch_size: int
    max_length: int
    segment_tokens: int
    gradient: Gradient | None
    curriculum: list[int]
    checkpointing: bool
    frozen_base: bool
    frozen_base_dtype: Literal["float16", "float32"]
    answers_only: bool
    weight_decay: float
    betas: list[float]
    max_grad_norm: float
    warmup: float
    schedule: Literal["linear", "cosine", "constant_with_warmup"]
    smallest_rate: float
    precision: Literal["auto", "float32", "bfloat16"]
    stages: StagesConfig
    recall: RecallConfig | None

    def __post_init__(self) -> None:
        _check_least("training.", self, ("batch_size", "micro_batch_size", "segment_tokens"), 1)
        _check_least("training.", self, ("max_length",), 2)
        _check_above("training.", self, ("max_grad_norm",), 0)
        if self.batch_size % self.micro_batch_size:
            raise SenriError(
                f"training.batch_size is {self.batch_size}, but it must be a multiple of micro_batch_size "
                f"{self.micro_batch_size}."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise SenriError(f"training.betas is {self.betas}, but it must be two numbers from 0 to below 1.")
        if not 0 <= self.warmup < 1:
            raise SenriError(f"training.warmup is {self.warmup}, but it must be a share of the steps, 0 to below 1.")
        for length in self.curriculum:
            if not 2 <= length <= self.max_length:
                raise SenriError(f"training.curriculum has {length}, but lengths are from 2 to {self.max_length}.")
        losses = [stage.loss for stage in self.stages.enabled.values()]
        if self.recall is None and (wanted := {"recall", "values", "finding"} & {*losses}):
            raise SenriError(
                f"a stage has the loss {' and '.join(sorted(wanted))}, but training.recall says nothing: give its "
                f"settings."
            )
        if self.curriculum and self.answers_only:
            raise SenriError("training.curriculum cuts the answers off that answers_only trains: choose one.")

    def check_window(self, window: int | None) -> None:
        """Check that sequences are longer than the window.

        Raises:
            SenriError: they are not, so that nothing would have to be remembered.
        """
        if window is not None and self.max_length <= window:
            raise SenriError(
                f"training.max_length is {self.max_length}, but the model's sliding_window is {window}: a sequence "
                f"must be longer, or the memory is never needed."
            )

    def check_processes(self, processes: int) -> None:
        """Check that a step's sequences can be shared out.

        Raises:
            SenriError: they cannot.
        """
        if self.batch_size % (self.micro_batch_size * processes):
            raise SenriError(
                f"training.batch_size is {self.batch_size}, but {processes} processes take {self.micro_batch_size} "
                f"sequences each: make it a multiple of {self.micro_batch_size * processes}."
            )


@dataclass
class DataConfig:
    """What `experiment.data` holds; `config/experiment.yaml` says what each is.

    Raises:
        SenriError: no text to train on, shares that leave none, or a number out of range.
    """

    train: str | None
    validation: str | None
    test: str | None
    held_out: list[float]
    unwrap: bool
    tokens: int | None
    block_characters: int
    cache: Path | None
    sentences: "SentencesConfig | None"

    def __post_init__(self) -> None:
        if (self.train is None) == (self.sentences is None):
            raise SenriError("experiment.data.train must name the text to train on (or experiment.data.sentences).")
        if len(self.held_out) != 2 or min(self.held_out) < 0 or sum(self.held_out) >= 1:
            raise SenriError(
                f"experiment.data.held_out is {self.held_out}, but it must be two shares below 1 together."
            )
        _check_least("experiment.data.", self, ("block_characters",), 1)
        if self.tokens is not None:
            _check_least("experiment.data.", self, ("tokens",), 1)


@dataclass
class SentencesConfig:
    """Sentences that are learnt by heart, packed without padding: the training half of the reversal curse.

    Args:
        path: the folder of Berglund et al., or a two-column CSV file.
        first: column of a CSV file.
        second: column of a CSV file.
        forward: how a row of a CSV file is written in the order that is taught, with {first} and {second}.
        backward: and in the other one; it is not trained on.
        separator: between sentences; `eos` is the end-of-text token.

    Raises:
        SenriError: no path.
    """

    path: str | None
    first: str
    second: str
    forward: str
    backward: str
    separator: str

    def __post_init__(self) -> None:
        if self.path is None:
            raise SenriError(
                "experiment.data.sentences.path must name the pairs: the folder of Berglund et al., or a CSV file."
            )


@dataclass
class NeedlesConfig:
    """What `experiment.needles` holds; `config/experiment.yaml` says what each is."""

    ratio: float
    format: str
    values: list[Literal["numbers", "words", "uuids", "codes"]]
    needles: list[int]
    question_context: int

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise SenriError(f"experiment.needles.ratio is {self.ratio}, but it must be a share, 0 to 1.")


@dataclass
class HeldOutConfig:
    """What `experiment.evaluation` holds; `config/experiment.yaml` says what each is."""

    documents: int
    tokens: int
    chunk_size: int

    def __post_init__(self) -> None:
        _check_least("experiment.evaluation.", self, ("documents", "chunk_size"), 1)
        _check_least("experiment.evaluation.", self, ("tokens",), 2)


@dataclass
class ExperimentConfig:
    """What the section `experiment` holds; `config/experiment.yaml` says what each is."""

    name: str | None
    out: Path
    seed: int
    device: str
    report_to: list[str]
    log_every: int
    save_every: int
    keep_checkpoints: int
    data: DataConfig
    needles: NeedlesConfig
    evaluation: HeldOutConfig

    def __post_init__(self) -> None:
        _check_least("experiment.", self, ("log_every", "save_every"), 1)
        # While one checkpoint is being written, another must be whole.
        _check_least("experiment.", self, ("keep_checkpoints",), 2)


@dataclass
class Recipe:
    """A whole training run."""

    model: ModelConfig
    training: TrainingConfig
    experiment: ExperimentConfig


def _check_least(prefix: str, config: Any, names: tuple[str, ...], least: int) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise SenriError(f"{prefix}{name} is {getattr(config, name)}, but it must be at least {least}.")


def _check_above(prefix: str, config: Any, names: tuple[str, ...], bound: float) -> None:
    for name in names:
        if getattr(config, name) <= bound:
            raise SenriError(f"{prefix}{name} is {getattr(config, name)}, but it must be above {bound:g}.")
