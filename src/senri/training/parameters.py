"""Which parameters a stage trains, and which of them have a rate of their own."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from senri.memory.input_whitening import InputWhitening
from senri.memory.token_codes import TokenCodes
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.config import Train

_STRENGTHS = (
    "memory_gate",
    "gate_weight",
    "gate_bias",
    "gates",
    "beta_proj",
    "conv_beta",
    "decay_proj",
    "memory_read",
    "memory_say",
)
"""Gates, write and read strengths: few numbers that must move far, which the base's rate does not let them."""


_VALUES = (
    *(f"memory.inputs.{name}" for name in (f"{one}_proj.{kind}" for one in "vqk" for kind in ("weight", "bias"))),
    "memory.memory.norm_weight",
    "memory_o_proj.weight",
)
"""Values and what is done with those that were found; with queries and keys, whose start is solved."""


_HEARING = ("memory_read.", "memory_codes.", "memory_say.")
"""What decides how surely a read is said, and as what; beginnings of names."""

_FINDING = ("memory.inputs.", *_HEARING)
"""What decides whether a query meets its key, and how surely a read is said, beginnings of names; not `v_proj`, which
makes the values: the layers above a memory that is added have learnt to hear them."""


def choose_trained(model: SenriForCausalLM, train: Train) -> None:
    """Mark what is trained and freeze the rest.

    Args:
        model: a Senri model.
        train: `values`: what makes the memories' values and adds those that were found, and queries and keys;
            `finding`: what makes queries, keys, write and read strengths, and how surely a memory that copies does so;
            `hearing`: how surely a read is said, and nothing of the memory; `answering`: `finding` and what adds reads,
            for values stay centred where they are not trained; `memory`: all of the memories, their gates and output
            projections; `mixers`: all of the mixers that have a memory; `all`: everything.
    """
    mixers = {f"model.layers.{index}.self_attn." for index in model.model.memory_branches()}
    fixed = {id(parameter) for parameter in _measured(model)}
    for name, parameter in model.named_parameters():
        mixer = next((mixer for mixer in mixers if name.startswith(mixer)), None)
        in_mixer = None if mixer is None else name.removeprefix(mixer)
        chosen = {
            "values": in_mixer is not None and in_mixer in _VALUES,
            "finding": in_mixer is not None and in_mixer.startswith(_FINDING) and "v_proj" not in in_mixer,
            "hearing": in_mixer is not None and in_mixer.startswith(_HEARING),
            "answering": in_mixer is not None and in_mixer.startswith("memory") and "v_proj" not in in_mixer,
            "memory": in_mixer is not None and in_mixer.startswith("memory"),
            "mixers": in_mixer is not None,
            "all": True,
        }[train]
        parameter.requires_grad_(chosen and id(parameter) not in fixed)


def memory_names(model: SenriForCausalLM) -> list[str]:
    """Return the names of all parameters of the memories, what is measured and never trained among them."""
    prefixes = tuple(f"model.layers.{index}.self_attn.memory" for index in model.model.memory_branches())
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


def _measured(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield what is measured at conversion and never learnt: orthogonal bases, whitening, frequencies of codes."""
    for module in model.modules():
        if isinstance(module, InputWhitening):
            yield from module.parameters()
        elif isinstance(module, TokenCodes):
            yield module.frequencies
        elif isinstance(basis := getattr(module, "basis", None), nn.Parameter):
            yield basis


def trained_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def parameter_groups(
    model: nn.Module, learning_rate: float, gate_learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return an optimiser's groups: matrices with weight decay, other parameters without, gates at their own rate.

    A group without a parameter is left out.
    """
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "vectors": [], "gates": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if any(part in _STRENGTHS for part in name.split(".")):
            groups["gates"].append(parameter)
        else:
            groups["matrices" if parameter.ndim > 1 else "vectors"].append(parameter)
    rates = {"matrices": learning_rate, "vectors": learning_rate, "gates": gate_learning_rate}
    return [
        {"params": found, "lr": rates[kind], "weight_decay": weight_decay if kind == "matrices" else 0.0}
        for kind, found in groups.items()
        if found
    ]
