"""The table of a conversion: which parameters were kept, converted, created or left out, and from what."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from senri.conversion.weights import group_name

Action = Literal["kept", "converted", "created", "left out"]


@dataclass(frozen=True)
class TableRow:
    """One group of parameters: the same parameter of all layers.

    Args:
        name: parameter name with `*` for the layer.
        action: `kept` (name and values), `converted` (renamed, split or repeated), `created` (not in the base) or
            `left out` (in the base only).
        source: the base's name, or how a created parameter got its values.
        tensors: how many tensors.
        shape: of each.
        parameters: numbers in all tensors together.
    """

    name: str
    action: Action
    source: str
    tensors: int
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class ConversionTable:
    """What a conversion did, parameter group by parameter group."""

    rows: tuple[TableRow, ...]

    def to_list(self) -> list[dict[str, Any]]:
        """Return the rows as plain data."""
        return [asdict(row) | {"shape": list(row.shape)} for row in self.rows]

    def total(self, *actions: Action) -> int:
        """Return how many numbers were treated in one of the given ways."""
        return sum(row.parameters for row in self.rows if row.action in actions)

    def render(self) -> Table:
        """Return the table for a rich console of 80 columns: short names, their origin below them where it differs."""
        table = Table(title="Conversion")
        table.add_column("parameter", overflow="fold")
        table.add_column("action", no_wrap=True)
        table.add_column("tensors", justify="right", no_wrap=True)
        table.add_column("numbers", justify="right", no_wrap=True)
        for row in self.rows:
            name, source = _short(row.name), _short(row.source)
            label = Text(name if source == name else f"{name}\n")
            label.append("" if source == name else source, style="dim")
            tensors = " x ".join(map(str, (row.tensors, *row.shape)))
            table.add_row(label, row.action, tensors, f"{row.parameters:,}")
        table.add_section()
        for action in ("kept", "converted", "created", "left out"):
            if count := self.total(action):
                table.add_row("all", action, "", f"{count:,}")
        return table


def _short(name: str) -> str:
    for prefix in ("model.", "gpt_neox.", "layers.*.", "self_attn."):
        name = name.removeprefix(prefix)
    return name


def make_table(
    model: nn.Module, base_weights: Mapping[str, Tensor], origins: Mapping[str, str], created: Mapping[str, str]
) -> ConversionTable:
    """Describe a converted model.

    Args:
        model: the converted model.
        base_weights: the base's state dict.
        origins: for each of the model's parameters that came from the base, the base's name of it.
        created: by the end of a parameter's name, how its values came to be.
    """
    groups: dict[tuple[str, Action, str, tuple[int, ...]], int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        action: Action = "created"
        if name in origins:
            source = group_name(origins[name])
            action = "kept" if origins[name] == name else "converted"
        else:
            source = next((how for ending, how in created.items() if name.endswith(ending)), "initialised")
        groups[group_name(name), action, source, tuple(parameter.shape)] += 1
    used = set(origins.values())
    for name, tensor in base_weights.items():
        if name not in used:
            groups[group_name(name), "left out", "the new model has no place for it", tuple(tensor.shape)] += 1
    rows = []
    for (name, action, source, shape), tensors in groups.items():
        size = tensors
        for dim in shape:
            size *= dim
        rows.append(TableRow(name, action, source, tensors, shape, size))
    return ConversionTable(tuple(rows))
