"""SenriTrainer: transformers' Trainer with rates of their own for gates, small checkpoints, and a stop at NaN."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from senri.errors import SenriError
from senri.training.config import StageConfig
from senri.training.objective import Objective
from senri.training.parameters import parameter_groups

TRAINED_FILE = "trained.safetensors"
"""The trained parameters of a checkpoint, by their names in the Senri model; what is frozen is not stored again."""

_WHOLE = "whole"  # a file that is written last: a checkpoint without it was cut off
_PREFIX = "model."  # where an objective keeps the model


class SenriTrainer(Trainer):
    """A trainer of objectives.

    Args:
        stage: rates of the stage.
        curriculum: lengths that sequences are cut to, in equal shares of the steps; empty for none.
        **kwargs: of transformers' Trainer; `model` is an `Objective`.
    """

    model: Objective

    def __init__(
        self,
        stage: StageConfig,
        curriculum: list[int],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage, self.curriculum = stage, curriculum
        self._figures: dict[str, list[Tensor]] = {}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser with the groups of `parameter_groups`."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            options.pop("lr", None)
            groups = parameter_groups(
                self.model if model is None else model,
                self.stage.learning_rate,
                self.stage.gate_learning_rate,
                self.args.weight_decay,
            )
            self.optimizer = kind(groups, lr=self.stage.learning_rate, **options)
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the objective on sequences cut to the curriculum's length, and remember its other figures."""
        outputs = model(**self._cut(inputs))
        figures = {name: figure for name, figure in outputs.items() if name != "loss"}
        for name, figure in figures.items():
            self._figures.setdefault(name, []).append(figure)
        return outputs["loss"]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Do as the Trainer does, and stop at a loss that is no number.

        Raises:
            SenriError: names the step, the layer, and the last good checkpoint.
        """
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise self._not_finite("the loss", self._broken_layer(model, inputs))
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, together with the means of the objective's other figures (of this process)."""
        if "loss" in logs:
            logs |= {name: float(torch.stack(values).float().mean()) for name, values in self._figures.items()}
            self._figures = {}
        super().log(logs, *args, **kwargs)

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that is whole, or None."""
        found = [path for path in Path(str(self.args.output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_whole(path)]
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    def _cut(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if not self.curriculum:
            return inputs
        place = self.state.global_step * len(self.curriculum) // max(self.state.max_steps, 1)
        length = self.curriculum[min(place, len(self.curriculum) - 1)]
        return {name: tensor[:, :length] for name, tensor in inputs.items()}

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise self._not_finite("the gradient", f"the parameter {_bare(name)}")
        return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _not_finite(self, what: str, where: str) -> SenriError:
        checkpoint = self.last_checkpoint()
        kept = "there is no checkpoint yet" if checkpoint is None else f"the last good checkpoint is {checkpoint}"
        return SenriError(
            f"{what} is not a finite number at step {self.state.global_step + 1}, first in {where}; {kept}: lower the "
            f"stage's learning_rate or training.max_grad_norm, then run the same command."
        )

    @torch.no_grad()
    def _broken_layer(self, model: nn.Module, inputs: dict[str, Any]) -> str:
        broken: list[str] = []

        def look(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, out: Any) -> None:
                first = out[0] if isinstance(out, tuple) else out
                if not broken and isinstance(first, Tensor) and not torch.isfinite(first).all():
                    broken.append(name)

            return hook

        layers: Any = self.model.model.model.layers
        with contextlib.ExitStack() as hooks:
            for index, layer in enumerate(layers):
                for part in (layer.self_attn, layer):
                    hooks.callback(part.register_forward_hook(look(f"layer {index}")).remove)
            model(**self._cut(self._prepare_inputs(inputs)))
        return broken[0] if broken else "the head"

    # Checkpoints: only what is trained, marked when whole.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off here
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                (folder / _WHOLE).touch()
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, RuntimeError) and "write" not in str(error).lower():
                raise  # torch says a full disk as a RuntimeError of its file writer
            checkpoint = self.last_checkpoint()
            kept = "there is none before it" if checkpoint is None else f"{checkpoint} before it is whole"
            reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
            raise SenriError(
                f"the checkpoint {folder} cannot be written ({reason}), {kept}: make room, then run the same command."
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(trained_tensors(self.model, state_dict), folder / TRAINED_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self.model if model is None else model, Path(resume_from_checkpoint) / TRAINED_FILE)


def trained_tensors(objective: nn.Module, state_dict: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the trained parameters of an objective's model by their names there, on the CPU.

    Args:
        objective: what was trained; where its parameters are spread over processes, all of these must call this.
        state_dict: its whole state, where it has been gathered already.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            tensor: Any = parameter if state_dict is None else state_dict[_bare(name, model_too=False)]
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            found[_bare(name)] = whole.detach().cpu().contiguous()
    return found


def load_trained(objective: nn.Module, path: Path) -> None:
    """Read the trained parameters into an objective's model, in place.

    Raises:
        SenriError: the file holds other parameters than are trained.
    """
    tensors = safetensors.torch.load_file(path)
    parameters = {_bare(name): parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())[0]
        raise SenriError(
            f"{path} holds other parameters than are trained now ({odd}): the recipe has changed; name another "
            f"experiment.name or delete the run's folder."
        )
    if any(isinstance(parameter, DTensor) for parameter in parameters.values()):  # spread over processes by FSDP2
        options = StateDictOptions(full_state_dict=True, strict=False)
        whole: dict[str, Any] = {f"{_PREFIX}{name}": tensor for name, tensor in tensors.items()}
        set_model_state_dict(objective, whole, options=options)
        return
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / _WHOLE).is_file()


def _bare(name: str, model_too: bool = True) -> str:
    """Return a parameter's name in the Senri model, without what wrappers put before it."""
    name = name.removeprefix("module.")
    return name.removeprefix(_PREFIX) if model_too else name
