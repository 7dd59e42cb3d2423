"""Calibration: set a converted model's memories in closed form from the base's activations on a sample of text.

The base reads the text once with full attention; each memory layer's inputs are kept. From them come, without any
gradient: the start of a memory's own projections, the mean and whitening of queries and keys per head, and the gate
that brings `gate * memory + (1 - gate) * window` nearest to the base's full attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from senri.conversion.sinks import measured_sinks, sink_layers
from senri.conversion.starts import fits_base
from senri.data import TokenStream, chunks, open_document
from senri.errors import SenriError
from senri.memory import MemoryBranch, OrthogonalBasisMemory
from senri.memory.calibration import GateLeastSquares, RunningMoments, whitening_matrix
from senri.memory.input_starts import start_from_whitening
from senri.mixers import CopiedMemory, SoftmaxAttention, WindowMemory, given_values, seen_by_memory
from senri.mixers.context import BandedMask, MixerMasks
from senri.models.configuration_senri import SenriConfig
from senri.models.modeling_senri import SenriForCausalLM, SenriModel

Positions = tuple[Tensor, Tensor]


@dataclass
class CalibrationSettings:
    """What `config/calibration.yaml` holds.

    Args:
        tokens: how many tokens of the text are read.
        sequence_length: tokens the base reads at a time; raised to two windows where gates are solved.
        block_characters: characters tokenised at a time.
        seed: of the random starts.
        solve_gate: set the gates by least squares; otherwise they stay at `memory.gate_init`.
        gate_low: smallest gate, in (0, 1).
        gate_high: largest gate, in (0, 1).
        relative_floor: smallest eigenvalue that whitening inverts, as a share of the largest.

    Raises:
        SenriError: a value outside its range.
    """

    tokens: int
    sequence_length: int
    block_characters: int
    seed: int
    solve_gate: bool
    gate_low: float
    gate_high: float
    relative_floor: float

    def __post_init__(self) -> None:
        for name in ("tokens", "sequence_length", "block_characters"):
            if getattr(self, name) < 1:
                raise SenriError(f"{name} of the calibration is {getattr(self, name)}, but it must be at least 1.")
        if not 0 < self.gate_low < self.gate_high < 1:
            raise SenriError(
                f"gate_low {self.gate_low} and gate_high {self.gate_high} of the calibration must be between 0 and 1, "
                f"the low one below the high one."
            )
        if not 0 < self.relative_floor < 1:
            raise SenriError(f"relative_floor of the calibration is {self.relative_floor}, but it must be in (0, 1).")


@dataclass(frozen=True)
class LayerInputs:
    """One piece of text at one layer: the attention's input and the tokens' embeddings, `[1, seq, hidden]` both, and
    the rotary cosines and sines.
    """

    hidden_states: Tensor
    embeddings: Tensor
    positions: Positions


def needs_calibration(config: SenriConfig, settings: CalibrationSettings) -> bool:
    """Tell whether anything in this model is set from a text."""
    memory = config.memory_config
    if sink_layers(config):
        return True
    if not config.memory_layers:
        return False
    starts_from_text = memory.projections == "own" and not fits_base(config)
    basis_from_text = memory.type == "orthogonal" and memory.options.get("basis") == "eigen"
    return starts_from_text or basis_from_text or memory.calibration == "whiten" or _solves_gate(config, settings)


def calibrate(
    model: SenriForCausalLM,
    base_weights: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    settings: CalibrationSettings,
    text: str | Path | None = None,
) -> dict[str, Any]:
    """Set the memories of a freshly converted model in place.

    Args:
        model: the converted model, float32.
        base_weights: the base's tensors by Senri name.
        tokenizer: the base's.
        settings: how much text, and the bounds.
        text: a text file or folder; the Python language reference if None.

    Returns:
        What was done, as plain data: the text, tokens read, and the gates `[heads]` of each layer that has them.

    Raises:
        SenriError: the text cannot be read, or is too short for the window.
    """
    config = model.config
    if settings.solve_gate and config.memory_config.state == "shared":
        raise SenriError("solve_gate cannot set the gates of layers that share a state: leave solve_gate=false.")
    document = open_document(text)
    stream = TokenStream(document, tokenizer, settings.block_characters)
    length = settings.sequence_length
    if _solves_gate(config, settings) or sink_layers(config):
        assert config.sliding_window is not None
        length = max(length, 2 * config.sliding_window)
    pieces = list(chunks(islice(stream, settings.tokens), length))
    _check_length(config, pieces, document.name)
    base = _base_model(config, base_weights)
    report: dict[str, Any] = {"text": document.name, "tokens": sum(piece.shape[1] for piece in pieces)}
    with measured_sinks(base, model):
        inputs = _layer_inputs(base, pieces, config.memory_layers or [])
    generator = torch.Generator().manual_seed(settings.seed)
    memory, gates = config.memory_config, {}
    shared_start = generator.get_state()
    for layer, seen in inputs.items():
        mixer: Any = model.model.layers[layer].self_attn
        if config.writing_layer(layer) != layer:
            # its queries begin as the writing layer's keys do, with the same random maps
            generator.set_state(shared_start)
        if memory.projections == "own" and not fits_base(config):
            _start_own_projections(mixer, seen, generator)
        if isinstance(mixer, CopiedMemory):
            mixer.memory_codes.initialise(model.model.embed_tokens.weight)
        if isinstance(mixer.memory, MemoryBranch):
            _measure_keys(mixer, seen, settings.relative_floor)
        if _solves_gate(config, settings):
            full: Any = base.layers[layer].self_attn
            gates[layer] = _solve_gate(mixer, full, seen, settings, document.name).tolist()
    if gates:
        report["gates"] = gates
    return report


def _check_length(config: SenriConfig, pieces: list[Tensor], text: str) -> None:
    """Refuse a text that could not set what the model asks for, rather than set it from noise."""
    memory = config.memory_config
    tokens, longest = sum(piece.shape[1] for piece in pieces), max(piece.shape[1] for piece in pieces)
    if sink_layers(config) and longest <= (config.sliding_window or 0):
        raise SenriError(
            f"the calibration text {text} gives {longest} tokens in a row, but attention sinks are measured beyond the "
            f"window of {config.sliding_window}: give a longer text, a smaller sliding_window, or attention_sink=false."
        )
    width = memory.key_dim or config.head_dim or 0
    if config.memory_layers and memory.calibration == "whiten" and tokens <= width:
        raise SenriError(
            f"the calibration text {text} has {tokens} tokens, but whitening keys of {width} numbers needs more than "
            f"{width}: give a longer text, or memory.calibration=none."
        )


def _solves_gate(config: SenriConfig, settings: CalibrationSettings) -> bool:
    # Without a window local attention is the base's own, and no gate comes nearer to it than a closed one.
    return settings.solve_gate and config.memory_config.combine == "gate" and config.sliding_window is not None


def _base_model(config: SenriConfig, weights: Mapping[str, Tensor]) -> SenriModel:
    """Return the base as a Senri model with full attention everywhere, up to the last layer that is calibrated."""
    last = max([*(config.memory_layers or []), *sink_layers(config)])
    changes = {
        "num_hidden_layers": last + 1,
        "memory_layers": [],
        "layer_types": None,
        "sliding_window": None,
        "attention_sink": False,
        "default_layer_type": "full_attention",
        "memory": None,
    }
    plain = SenriModel(SenriConfig.from_dict(config.to_dict() | changes))
    plain.config._attn_implementation = "sdpa"
    wanted = plain.state_dict().keys()
    own = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    plain.load_state_dict({name: own[name] for name in wanted}, assign=True)
    plain.train(False)
    return plain


@torch.no_grad()
def _layer_inputs(base: SenriModel, pieces: list[Tensor], layers: list[int]) -> dict[int, list[LayerInputs]]:
    """Run the base over the pieces and keep what goes into the attention of the given layers."""
    kept: dict[int, list[LayerInputs]] = {layer: [] for layer in sorted(layers)}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden_states = args[0] if args else kwargs["hidden_states"]
            kept[layer].append(LayerInputs(hidden_states, embeddings, kwargs["position_embeddings"]))

        return hook

    mixers: dict[int, Any] = {i: base.layers[i].self_attn for i in kept}
    hooks = [mixer.register_forward_pre_hook(keep(i), with_kwargs=True) for i, mixer in mixers.items()]
    try:
        with _progress() as progress:
            task = progress.add_task("calibration: tokens", total=sum(piece.shape[1] for piece in pieces))
            for piece in pieces:
                embeddings = base.embed_tokens(piece)
                base(inputs_embeds=embeddings, use_cache=False)
                progress.advance(task, piece.shape[1])
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


@torch.no_grad()
def _start_own_projections(mixer: Any, seen: list[LayerInputs], generator: torch.Generator) -> None:
    moments = RunningMoments()
    for piece in seen:
        moments.update(seen_by_memory(mixer, piece.hidden_states, piece.embeddings).flatten(0, 1))
    start_from_whitening(mixer.memory.inputs, moments.mean, moments.covariance, generator)


@torch.no_grad()
def _measure_keys(mixer: Any, seen: list[LayerInputs], relative_floor: float) -> None:
    """Measure queries and keys as the memory receives them (before positions), per head; whiten them there, or take the
    keys' eigenvectors as the basis, where the memory asks for it.
    """
    memory = mixer.memory.memory
    takes_basis = isinstance(memory, OrthogonalBasisMemory) and memory.options.basis == "eigen"
    if memory.config.calibration != "whiten" and not takes_basis:
        return
    queries, keys = RunningMoments(), RunningMoments()
    for piece in seen:
        inputs = mixer.memory.inputs
        shared = given_values(mixer, piece.embeddings, None)
        if inputs.config.projections == "shared":
            shared = mixer.project(piece.hidden_states)
        hidden_states = seen_by_memory(mixer, piece.hidden_states, piece.embeddings)
        tokens, _ = inputs(hidden_states, inputs.init_state(1), shared=shared)
        queries.update(tokens.q.squeeze(0))
        keys.update(tokens.k.squeeze(0))
    if memory.config.calibration == "whiten":
        whitening = (whitening_matrix(moments.covariance, relative_floor) for moments in (keys, queries))
        key_whitening, query_whitening = whitening
        memory.set_calibration(keys.mean, key_whitening, queries.mean, query_whitening)
    if takes_basis:
        memory.set_basis(torch.linalg.eigh(keys.covariance).eigenvectors)


@torch.no_grad()
def _solve_gate(
    mixer: WindowMemory, full: SoftmaxAttention, seen: list[LayerInputs], settings: CalibrationSettings, text: str
) -> Tensor:
    """Set a layer's gate and return it, `[heads]`. Only tokens that look back further than the window count."""
    window = mixer.sliding_window
    assert window is not None
    gate = GateLeastSquares()
    for piece in seen:
        x = piece.hidden_states
        if x.shape[1] <= window:
            continue
        qkv = mixer.project(x)
        target, _ = full.attend(qkv, MixerMasks(), piece.positions, None)
        beyond = (torch.arange(x.shape[1], device=x.device) >= window)[None]
        masks = MixerMasks(sliding_attention=BandedMask(None), beyond_window=beyond)
        local, _ = mixer.attend(qkv, masks, piece.positions, None)
        shared = qkv if mixer.shares_projections else None
        remembered, _ = mixer.memory(x, mixer.memory.init_state(1, x.device), shared=shared)
        far = slice(window, None)
        gate.update(target.transpose(1, 2)[:, :, far], local.transpose(1, 2)[:, :, far], remembered[:, :, far])
    try:
        solved = gate.solve(settings.gate_low, settings.gate_high)
    except SenriError:
        raise SenriError(
            f"the calibration text {text} is not longer than the window of {window} tokens, so that the gate cannot be "
            f"measured: give a longer text, or solve_gate=false."
        ) from None
    mixer.memory_gate.weight.copy_(torch.logit(solved))
    return solved
