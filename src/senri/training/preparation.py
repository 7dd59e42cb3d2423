"""What a run starts from: the model that is trained, its tokenizer, and the base it came from."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from senri.conversion import convert, load_base, resolve_base
from senri.conversion.output import write_folder
from senri.errors import SenriError
from senri.evaluation.processes import process_state
from senri.models.configuration_senri import SenriConfig
from senri.models.hand_built import create_model
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.config import Gradient, ModelConfig
from senri.training.manager import ConfigManager


def prepare_start(manager: ConfigManager, folder: Path) -> None:
    """Make the model that training starts from, once; the main process does it and the others wait.

    Args:
        manager: of the run.
        folder: where it is kept, so that a run that goes on starts from the very same weights.

    Raises:
        SenriError: whatever conversion refuses, or a tokenizer or folder that cannot be read.
    """
    process = process_state()
    if process.is_main_process and not (folder / "config.json").is_file():
        if manager.model.preset is not None:
            convert(
                None,
                manager.to_preset(),
                folder,
                calibration_text=manager.model.calibration_text,
                dtype=manager.model.dtype,
            )
        else:
            model, tokenizer = _make(manager)

            def fill(place: Path) -> None:
                model.save_pretrained(place)
                tokenizer.save_pretrained(place)

            write_folder(folder, fill)
    process.wait_for_everyone()


def load_start(folder: Path, gradient: Gradient | None) -> SenriForCausalLM:
    """Load the model that training starts from.

    Args:
        folder: of `prepare_start`.
        gradient: through time, where the recipe wants another than the model's memory says.
    """
    config = SenriConfig.from_pretrained(folder)
    if gradient is not None:
        config.memory = {**(config.memory or {}), "gradient": gradient}
        own = config.layer_memories or {}
        config.layer_memories = {layer: {**memory, "gradient": gradient} for layer, memory in own.items()}
    model: SenriForCausalLM = SenriForCausalLM.from_pretrained(folder, config=config)
    return model


def load_teacher(manager: ConfigManager) -> Any:
    """Load the base in transformers' own class, frozen.

    Raises:
        SenriError: the recipe converts no base, or it cannot be found.
    """
    if manager.model.preset is None:
        raise SenriError(
            "the losses distillation and kl_weight follow a base, but model.preset is not set: turn them off, or "
            "train a preset."
        )
    base, _ = load_base(resolve_base(manager.to_preset().base), torch.float32)
    return base.requires_grad_(False).eval()


def _make(manager: ConfigManager) -> tuple[Any, Any]:
    chosen: ModelConfig = manager.model
    if chosen.folder is not None:
        try:
            model = SenriForCausalLM.from_pretrained(chosen.folder)
            return model, AutoTokenizer.from_pretrained(chosen.folder)
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SenriError(f"model.folder {chosen.folder!r} cannot be read as a Senri model ({reason}).") from error
    assert chosen.create is not None and chosen.tokenizer is not None
    tokenizer = open_tokenizer(chosen.tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(manager.experiment.seed)
        model = create_model(chosen.create, **chosen.changes)
    if model.config.vocab_size < len(tokenizer):
        raise SenriError(
            f"the tokenizer {chosen.tokenizer!r} has {len(tokenizer)} tokens, but the model only "
            f"{model.config.vocab_size}: set model.changes.vocab_size."
        )
    model.config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def open_tokenizer(source: str) -> Any:
    """Load a tokenizer from a Hub id, a folder or a tokenizer.json; one without an end-of-text token gets its own.

    Raises:
        SenriError: it cannot be read.
    """
    path = Path(source)
    try:
        if path.is_file():
            tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(path))
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # a missing or damaged file shows as OSError, ValueError or tokenizers' own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SenriError(f"the tokenizer {source!r} cannot be read ({reason}): name a folder or a file.") from error
    if tokenizer.eos_token_id is None:
        known = tokenizer.get_vocab()
        tokenizer.eos_token = next((word for word in _END_OF_TEXT if word in known), None) or _END_OF_TEXT[0]
        if tokenizer.eos_token_id is None or tokenizer.eos_token not in known:
            tokenizer.add_special_tokens({"eos_token": _END_OF_TEXT[0]})
    return tokenizer


_END_OF_TEXT = ("<|endoftext|>", "</s>")
