"""Opening what is measured: any causal language model from a folder, the Hub or a GGUF file, perhaps with a session."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senri.cli.opening import model_type_of, open_session, open_tokenizer, quieten, readable
from senri.errors import SenriError

if TYPE_CHECKING:
    from senri.evaluation.subject import Subject


def open_subject(
    model: str, session: Path | None = None, name: str | None = None, dtype: str = "auto", device: str = "auto"
) -> "Subject":
    """Load a model to measure.

    Args:
        model: a folder, a Hub id, or a GGUF file.
        session: a session file to start from; only for Senri models.
        name: what reports call it; the last part of `model` if None.
        dtype: of the weights; "auto" as they are stored.
        device: "auto" takes the device that accelerate gives this process.

    Raises:
        SenriError: no such model, files that cannot be read, a session of another model, or no such device.
    """
    quieten()
    if session is not None and not session.is_file():
        raise SenriError(f"session {str(session)!r} does not exist: make one with senri read.")
    place = _place(model)
    import senri  # noqa: F401 - registers the architecture with transformers
    from senri.evaluation.subject import Subject

    loaded = _load(place, dtype).to(_device(device)).eval()
    tokenizer = open_tokenizer(place)
    live = None
    if session is not None:
        if model_type_of(Path(place)) != "senri":
            raise SenriError(f"{model} is no Senri model, so it cannot go on from a session: leave --session out.")
        live = open_session(session, loaded)
    return Subject(loaded, tokenizer, name or Path(model).name or model, str(place), live)


def _place(model: str) -> Any:
    """Return what transformers can load: a folder, or a Hub id; a GGUF file is dequantised into a folder first."""
    path = Path(model)
    if path.suffix == ".gguf":
        from senri.conversion import resolve_base
        from senri.conversion.loading import dequantised_folder

        return dequantised_folder(resolve_base(model))
    if path.is_dir():
        model_type_of(path)
        return path
    if path.exists() or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise SenriError(f"model folder {model!r} does not exist: name a folder, a .gguf file or a Hub id.")
    return model


def _load(place: Any, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with readable(place):
            return AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    except SenriError as error:
        if Path(place).is_dir():
            raise
        raise SenriError(f"{place!r} is no folder, and the Hub gives no such model ({error.__cause__}).") from error


def _device(name: str) -> Any:
    import torch

    from senri.evaluation.processes import process_state

    if name == "auto":
        return process_state().device
    with suppress(RuntimeError, AssertionError):  # torch raises the second where it was built without CUDA
        device = torch.device(name)
        if device.type == "cpu" or torch.zeros(1, device=device).numel():
            return device
    raise SenriError(f"device is {name!r}, which this machine does not have: auto, cpu, or such as cuda:0.")
