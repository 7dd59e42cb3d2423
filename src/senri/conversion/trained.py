"""Trained memories: what a recipe has learnt, shipped with Senri or in a file of one's own, put into a model."""

from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from senri.errors import SenriError, nearest
from senri.models.modeling_senri import SenriForCausalLM

SUFFIX = ".safetensors"


def shipped_memories() -> dict[str, Path]:
    """Return the trained memories that come with Senri, by name."""
    folder = Path(str(files("senri.conversion").joinpath("memories")))
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def find_trained(name_or_path: str) -> Path:
    """Return the file of a trained memory.

    Args:
        name_or_path: a name of `shipped_memories`, or a path that ends in .safetensors.

    Raises:
        SenriError: no such name (with the nearest) or file.
    """
    if name_or_path.endswith(SUFFIX):
        path = Path(name_or_path)
        if not path.is_file():
            raise SenriError(f"trained is {name_or_path!r}, but there is no such file.")
        return path
    shipped = shipped_memories()
    if name_or_path not in shipped:
        raise SenriError(
            f"no trained memory named {name_or_path!r} comes with Senri (a file's path ends in {SUFFIX}): "
            f"{nearest(name_or_path, shipped) if shipped else 'none does'}."
        )
    return shipped[name_or_path]


@torch.no_grad()
def load_trained(model: SenriForCausalLM, path: Path) -> list[str]:
    """Put trained parameters into a model, in place, and return their names.

    Args:
        model: converted by the preset that the memory was trained with.
        path: of `find_trained`; `memory.safetensors` of a run of `senri train` is one.

    Raises:
        SenriError: a damaged file, a parameter that the model does not have, one of another shape, or a part of a
            memory.
    """
    parameters = dict(model.named_parameters())
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise SenriError(
            f"{path} cannot be read as a trained memory ({error}): it is damaged or another file."
        ) from error
    for name, tensor in tensors.items():
        if name not in parameters:
            raise SenriError(f"{path} holds {name}, which the model does not have: it was trained with another preset.")
        if parameters[name].shape != tensor.shape:
            raise SenriError(
                f"{path} holds {name} of the shape {list(tensor.shape)}, but the model's is "
                f"{list(parameters[name].shape)}: it was trained with another preset or base."
            )
    _check_whole(model, path, set(tensors))
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
    return list(tensors)


def _check_whole(model: SenriForCausalLM, path: Path, held: set[str]) -> None:
    """Raise for a part of a memory: what was learnt belongs to the whitening and the codes that it was learnt with."""
    for layer in model.model.memory_branches():
        prefix = f"model.layers.{layer}.self_attn.memory"
        missing = {name for name, _ in model.named_parameters() if name.startswith(prefix)} - held
        if missing and any(name.startswith(f"{prefix}.") for name in held):
            raise SenriError(
                f"{path} holds a part of the memory in layer {layer}: {min(missing)} is not there, and a conversion "
                "would make it anew, unlike the one that the rest was trained with: take memory.safetensors of the run."
            )
