"""Dataclasses to plain JSON values and back, strictly.

An unknown, missing or mistyped field raises SpecError with the field's path and what was expected.
msgspec (0.22) does less for dataclasses: it accepts unknown fields, fills missing ones that have a
default, and its errors omit the value. Its ``forbid_unknown_fields`` needs its own Struct class.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from hybrid_rt.errors import SpecError

_T = TypeVar("_T")


def to_plain(value: Any) -> Any:
    """Return dictionaries, lists, strings and numbers of a dataclass and all in it."""
    if is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


@cache
def _field_types(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def from_plain(cls: type[_T], data: Any, path: str) -> _T:
    """Return a dataclass of JSON values; ``path`` names it in errors. Raises SpecError."""
    if not isinstance(data, Mapping):
        raise SpecError(f"{path} is {_kind(data)}; expected an object")
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise SpecError(f"{path}.{unknown[0]} is unknown; known fields are {', '.join(names)}")
    missing = [name for name in names if name not in data]
    if missing:
        raise SpecError(f"{path}.{missing[0]} is missing")
    hints = _field_types(typing.cast("Hashable", cls))
    return cls(**{n: _convert(hints[n], data[n], f"{path}.{n}") for n in names})


def _convert(hint: Any, value: Any, path: str) -> Any:
    """``value`` as the type ``hint``; JSON has no tuples, and may have 1 for 1.0."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, path)
    if origin is Literal:
        if value in args and isinstance(value, str):
            return value
        raise SpecError(f"{path} is {value!r}; expected one of {', '.join(map(repr, args))}")
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{path} is {_kind(value)}; expected a list")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise SpecError(f"{path} has {len(value)} entries; expected {len(args)}")
        return tuple(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise SpecError(f"{path} is {_kind(value)}; expected an object")
        return dict(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise SpecError(f"{path} is {value}; expected a finite number")
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise SpecError(f"{path} is {_kind(value)}; expected {hint.__name__}")


def _convert_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [a for a in args if a is not type(None)]
    for option in options:
        # To Python 3.10 dict[str, int] is an instance of type too.
        plain = isinstance(option, type) and typing.get_origin(option) is None
        if plain and isinstance(value, option):
            return _convert(option, value, path)
    return _convert(options[0], value, path)


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
