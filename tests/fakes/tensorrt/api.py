"""The recorded API: which classes, members and values a version of TensorRT has.

``assets/tensorrt_api.json`` is recorded from NVIDIA's bindings by ``tools/make_tensorrt_api.py``.
Using a member that a version lacks, or calling it with other parameters, raises as the real module
does.
"""

import functools
import inspect
import json
from pathlib import Path

API = json.loads((Path(__file__).parents[2] / "assets" / "tensorrt_api.json").read_text())
VERSIONS = ["8.6", "10.3", "10.16", "11.4", "rtx"]


def checked_class(name, recorded, implementation=object, trt=None):
    """Return a class with the recorded members that behaves as ``implementation``.

    The implementation's methods find the fake module as ``self._trt``.
    """
    members = {}
    settable = set()
    for member, facts in recorded.items():
        own = getattr(implementation, member, None)
        if "property" in facts:
            if facts["property"] == "settable":
                settable.add(member)
            if isinstance(own, property):
                members[member] = own
        elif member.startswith("__") and own in (None, getattr(object, member, None)):
            continue
        elif own is None:
            members[member] = _missing(name, member)
        else:
            members[member] = _checked(name, own, facts["overloads"]) if facts["overloads"] else own

    properties = {m for m, facts in recorded.items() if "property" in facts}

    class Checked(implementation):
        def __setattr__(self, attribute, value):
            if not attribute.startswith("_") and attribute not in settable:
                raise AttributeError(f"{name} has no settable attribute {attribute!r}")
            object.__setattr__(self, attribute, value)

        def __getattribute__(self, attribute):
            public = not attribute.startswith("_")
            if public and type(self).__name__ == name and attribute not in recorded:
                raise AttributeError(f"{name} has no attribute {attribute!r}")
            if public and attribute in properties and attribute not in members:
                own = object.__getattribute__(self, "__dict__")
                return own.get(attribute, own.get("_" + attribute))
            return object.__getattribute__(self, attribute)

    for member, value in members.items():
        setattr(Checked, member, value)
    Checked._trt = trt
    Checked.__name__ = Checked.__qualname__ = name
    return Checked


def _checked(name, method, overloads):
    """Wrap a method so that it takes the recorded parameters only."""
    signatures = [
        inspect.Signature(
            [
                inspect.Parameter(
                    parameter,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=None if optional else inspect.Parameter.empty,
                )
                for parameter, optional in overload
            ]
        )
        for overload in overloads
    ]

    @functools.wraps(method)
    def call(*args, **kwargs):
        errors = []
        for signature in signatures:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as err:
                errors.append(str(err))
            else:
                return method(*bound.args, **bound.kwargs)
        raise TypeError(f"{name}.{method.__name__}: {errors}")

    return call


def _missing(name, member):
    """A recorded method that the fake does not implement."""

    def method(self, *args, **kwargs):
        raise NotImplementedError(f"the fake {name} has no {member}")

    return method


class Value(int):
    """A member of one of TensorRT's enumerations."""

    def __new__(cls, name, value):
        self = int.__new__(cls, value)
        self.name = name
        return self

    def __hash__(self):
        return hash((int(self), self.name))


def enumeration(name, values):
    """Return a class with the recorded members of an enumeration."""
    members = {k: Value(k, v) for k, v in values.items()}
    return type(name, (), {"__members__": members, **members})
