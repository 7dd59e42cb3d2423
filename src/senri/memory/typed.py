"""Dataclasses of settings from plain mappings, with every key and type checked: knobs and a memory's own options."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from senri.errors import SenriError, nearest

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """Build the dataclass `cls` from a mapping such as a YAML section.

    Args:
        cls: a dataclass; its `__post_init__` checks what types cannot say.
        values: the mapping.
        prefix: what the section is called, for messages: `memory` names a key `memory.rule`.

    Raises:
        SenriError: an unknown key (with the nearest known one) or a wrong value.
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise SenriError(f"unknown key '{prefix}.{key}': {nearest(str(key), known) if known else 'it has none'}")
    check_types(cls, values, prefix)
    return cls(**values)


def check_types(cls: type[Any], values: Mapping[str, Any], prefix: str) -> None:
    """Check values against the annotations of a dataclass.

    Raises:
        SenriError: names the key, the value and what is allowed.
    """
    hints = get_type_hints(cls)
    for name, value in values.items():
        _check_type(f"{prefix}.{name}", value, hints[name])


def check_at_least(prefix: str, values: Mapping[str, int | None], least: int, meaning: str = "") -> None:
    """Check that numbers are `None` or not below `least`.

    Raises:
        SenriError: names the key, the value and the bound.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise SenriError(f"{prefix}.{name} is {value}, but it must be at least {least}{meaning}.")


def _check_type(name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise SenriError(f"{name} is {value!r}: {nearest(str(value), get_args(hint))}")
        return
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if get_origin(hint) not in (dict, list) else [hint])]
    allowed = tuple(kinds) or (hint,)
    is_bool_for_number = isinstance(value, bool) and bool not in allowed
    if is_bool_for_number or not isinstance(value, (*allowed, int) if float in allowed else allowed):
        wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in allowed)
        raise SenriError(f"{name} is {value!r} ({type(value).__name__}), but it must be {wanted}.")


_WORDS = {type(None): "nothing", dict: "a section of names and values", list: "a list"}
