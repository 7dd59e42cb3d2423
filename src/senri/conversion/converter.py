"""convert: find a base, map its weights, give chosen layers a memory, calibrate it, and write a Senri model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from senri import __version__
from senri.conversion.calibrate import CalibrationSettings, calibrate, needs_calibration
from senri.conversion.families import convert_config
from senri.conversion.loading import load_base
from senri.conversion.output import check_target, write_folder
from senri.conversion.preset import Preset, load_preset
from senri.conversion.sources import resolve_base
from senri.conversion.starts import fits_base, own_projection_starts
from senri.conversion.table import ConversionTable, make_table
from senri.conversion.trained import find_trained, load_trained
from senri.conversion.weights import convert_weights, map_name
from senri.errors import SenriError, nearest
from senri.models.configuration_senri import SenriConfig
from senri.models.modeling_senri import SenriForCausalLM
from senri.settings import load_settings, save_resolved

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ConversionResult:
    """A converted model.

    Args:
        model: ready to use, in evaluation mode.
        tokenizer: the base's.
        table: what was kept, converted, created and left out.
        preset: what was asked for, with overrides applied.
        record: what `conversion.json` holds.
    """

    model: SenriForCausalLM
    tokenizer: PreTrainedTokenizerBase
    table: ConversionTable
    preset: Preset
    record: dict[str, Any]


def convert(
    base: str | Path | None,
    preset: Preset | str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    calibration_text: str | Path | None = None,
    calibration: CalibrationSettings | None = None,
    dtype: str = "float32",
    cache_dir: str | Path | None = None,
) -> ConversionResult:
    """Convert a pretrained checkpoint into a Senri model.

    Args:
        base: a folder, a .gguf file or a hub id; None for the preset's own.
        preset: a preset's name or file, or a `Preset`.
        out: folder to write; nothing is written if None. An earlier Senri model there is replaced.
        overrides: words such as `memory.rule=delta`, applied to the preset.
        calibration_text: file or folder that calibration reads; the Python language reference if None.
        calibration: its settings; `config/calibration.yaml` if None.
        dtype: of the converted weights: `float32`, `bfloat16` or `float16`. Calibration computes in float32.
        cache_dir: where downloaded and dequantised bases are kept; Senri's user cache if None.

    Raises:
        SenriError: anything that cannot be found, read, converted or written, in one sentence.
    """
    if dtype not in DTYPES:
        raise SenriError(f"dtype is {dtype!r}: {nearest(dtype, DTYPES)}")
    chosen = load_preset(preset, overrides)
    if base is not None:
        chosen = replace(chosen, base=str(base))
    settings = calibration or load_settings(CalibrationSettings, "calibration")
    if out is not None:
        check_target(Path(out))
    trained = find_trained(chosen.trained) if chosen.trained is not None else None
    resolved = resolve_base(chosen.base, cache_dir)
    source, tokenizer = load_base(resolved, torch.float32, cache_dir)
    base_weights = source.state_dict()
    config = convert_config(source.config, chosen, resolved.name)
    weights = convert_weights(base_weights, source.config)
    starts, start_origins = own_projection_starts(config, weights)
    model = _assemble(config, weights | starts, settings.seed)
    report = None
    if needs_calibration(config, settings):
        report = calibrate(model, weights, tokenizer, settings, calibration_text)
    learnt = load_trained(model, trained) if trained is not None else []
    model.generation_config = source.generation_config
    torch.nn.Module.to(model, dtype=DTYPES[dtype])  # PreTrainedModel.to has no usable types
    model.train(False)

    to_base = {new: old for old in base_weights for new in map_name(old, source.config.model_type)}
    origins = {name: to_base[start_origins.get(name, name)] for name in {*weights, *start_origins}}
    present = {name: origins[name] for name, _ in model.named_parameters() if name in origins and name not in learnt}
    how = {**dict.fromkeys(learnt, f"trained: {chosen.trained}"), **_how_created(config, report)}
    table = make_table(model, _unused_or_placed(base_weights, source), present, how)
    record = {
        "senri_version": __version__,
        "base": {"name": resolved.name, "origin": resolved.origin, "architecture": source.config.model_type},
        "dtype": dtype,
        "calibration": report,
        "parameters": table.to_list(),
    }
    result = ConversionResult(model, tokenizer, table, chosen, record)
    if out is not None:
        write_folder(Path(out), lambda folder: _write_files(result, folder))
    return result


def _assemble(config: SenriConfig, weights: Mapping[str, Tensor], seed: int) -> SenriForCausalLM:
    """Build the model, load what comes from the base and leave the rest as initialised from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SenriForCausalLM(config)
    known = model.state_dict().keys()
    report = model.load_state_dict({name: weights[name] for name in weights if name in known}, strict=False)
    model.tie_weights()
    for name in report.missing_keys:
        is_tied = config.tie_word_embeddings and name == "lm_head.weight"
        if ".memory" not in name and ".sink." not in name and not is_tied:
            raise SenriError(f"the base has no tensor for {name}, which the converted model needs.")
    return model


def _unused_or_placed(base_weights: Mapping[str, Tensor], source: PreTrainedModel) -> dict[str, Tensor]:
    """Return the base's tensors without those that are tied to another one."""
    tied = set(source._tied_weights_keys or {}) if source.config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in base_weights.items() if name not in tied}


def _how_created(config: SenriConfig, report: Mapping[str, Any] | None) -> dict[str, str]:
    """Say how the created parameters got their values, by the ends of their names."""
    memory = config.memory_config
    how = {"memory_gate.weight": f"memory.gate_init {memory.gate_init}"}
    if fits_base(config):
        how |= dict.fromkeys(("memory.inputs.q_proj.bias", "memory.inputs.k_proj.bias"), "zeros: the base has none")
    if memory.combine == "add":
        how["memory_o_proj.weight"] = "zeros: a fresh branch adds nothing"
    if memory.combine in ("add", "copy"):
        how |= {
            "memory_read.proj.weight": "zeros",
            "memory_read.proj.bias": f"read strength {memory.read_strength}",
            "memory_read.found": "ones: strength follows the odds that something was found",
        }
    if memory.combine == "copy":
        how["memory_codes.frequencies"] = "random, whitened on the embeddings of all tokens"
        how["memory_codes.sharpness"] = f"memory.copy_sharpness {memory.copy_sharpness}"
        how["memory_say.prior"] = f"memory.copy_prior {memory.copy_prior}"
        if memory.tokens_late:
            how["memory_say.repetition.weight"] = how["memory_say.repetition.bias"] = (
                "zeros: what it says does not yet go by what the window shows"
            )
        if memory.tokens_late and memory.copy_turns > 1:
            how["memory_say.followed.weight"] = "zeros"
            how["memory_say.followed.bias"] = "nor by what stands behind that"
        if config.end_token is not None:
            how["memory_say.end.weight"], how["memory_say.end.bias"] = "zeros", "hardly any answer ends yet"
        how["memory_say.sure"] = "zeros: strength does not yet go by how sure a read is"
    if report is None:
        return how
    text = f"{report['tokens']} tokens of {report['text']}"
    if config.attention_sink:
        how |= dict.fromkeys(("sink.score", "sink.value"), f"measured on {text}")
    if "gates" in report:
        how["memory_gate.weight"] = f"least squares on {text}"
    if memory.type == "orthogonal":
        is_measured = memory.options.get("basis") == "eigen"
        how["memory.basis"] = f"eigenvectors of the keys on {text}" if is_measured else "the identity"
    if memory.calibration == "whiten":
        how |= dict.fromkeys(("_mean", "_whitening"), f"measured on {text}")
    if memory.whitened_inputs:
        how |= dict.fromkeys(("inputs.whitening.weight", "inputs.whitening.bias"), f"measured on {text}")
    if memory.projections == "own" and not fits_base(config):
        for ending in (f"{one}_proj.{kind}" for one in "qkv" for kind in ("weight", "bias")):
            how[f"memory.inputs.{ending}"] = f"random, whitened on {text}"
    return how


def _write_files(result: ConversionResult, folder: Path) -> None:
    result.model.save_pretrained(folder)
    result.tokenizer.save_pretrained(folder)
    save_resolved(result.preset, folder / "preset.yaml")
    text = json.dumps(result.record, indent=2)
    (folder / "conversion.json").write_text(text + "\n", encoding="utf-8")
