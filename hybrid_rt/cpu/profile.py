"""CpuProfile: which libraries and precisions work on this CPU, and how fast they are.

A combination is a library and a precision: ``openvino bf16`` is an FP32 file run with the bf16
hint, ``openvino int8+bf16`` an INT8 file whose float layers run in bf16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hybrid_rt.errors import UsageError

#: The combinations that are probed, by library, in the order in which they are tried.
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8", "int8+bf16"),
    "torch": ("fp32", "bf16"),
}

#: The only ones that are used if nothing could be probed.
SAFE = "fp32"

Status = Literal["ran", "died", "hung", "wrong", "failed"]
Origin = Literal["probed", "cached", "file", "off", "fallback"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The outcome of a combination. ``milliseconds`` is the small network's time if it ran.

    ``capped`` is true if it ran under the instruction-set cap, because the library died, hung or
    was wrong without it.
    """

    status: Status
    milliseconds: float | None = None
    detail: str = ""
    capped: bool = False

    def __str__(self) -> str:
        text = f"{self.milliseconds:.1f} ms" if self.milliseconds is not None else self.status
        return f"{text} ({self.detail})" if self.detail and self.status != "ran" else text


@dataclass(frozen=True, kw_only=True)
class CpuProfile:
    """The outcomes on this CPU by combination, such as ``{"openvino bf16": Measurement(...)}``.

    ``cap`` is the value of ONEDNN_MAX_CPU_ISA that has to be in the environment before a library
    is imported, or None. ``origin`` is where the profile is from; ``note`` is for people.
    """

    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    cap: str | None = None
    origin: Origin = "probed"
    note: str = ""

    def runs(self, library: str, precision: str) -> bool:
        """Return whether a combination can be used; without a probe FP32 only, with "off" all."""
        if self.origin == "off":
            return True
        one = self.measurements.get(f"{library} {precision}")
        return precision == SAFE if one is None else one.status == "ran"

    def milliseconds(self, library: str, precision: str) -> float | None:
        """Return the small network's time; None if it was not measured."""
        one = self.measurements.get(f"{library} {precision}")
        return None if one is None else one.milliseconds

    def why_not(self, library: str, precision: str) -> str | None:
        """Return why a combination cannot be used here, as one line; None if it can."""
        if self.runs(library, precision):
            return None
        one = self.measurements.get(f"{library} {precision}")
        if one is None:
            return f"{precision} on {library} was not tried: {self.note or 'no probe'}"
        what = {
            "died": "ends the process",
            "hung": "does not end",
            "wrong": "returns wrong numbers",
            "failed": "does not run",
        }[one.status]
        return f"{precision} on {library} {what} on this CPU ({one.detail})"

    def merged(self, other: CpuProfile) -> CpuProfile:
        """Return one profile of both; a cap that one of them needs holds for both."""
        return CpuProfile(
            measurements={**self.measurements, **other.measurements},
            cap=self.cap or other.cap,
            origin=other.origin if other.measurements or not self.measurements else self.origin,
            note="; ".join(dict.fromkeys(n for n in (self.note, other.note) if n)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for from_dict."""
        return {
            "cap": self.cap,
            "origin": self.origin,
            "note": self.note,
            "measurements": {
                name: {
                    "status": one.status,
                    "milliseconds": one.milliseconds,
                    "detail": one.detail,
                    "capped": one.capped,
                }
                for name, one in self.measurements.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Any, *, origin: Origin) -> CpuProfile:
        """Return the profile of to_dict's values. Raises UsageError that names the field."""
        if not isinstance(data, Mapping) or not isinstance(data.get("measurements"), Mapping):
            raise UsageError("a CPU profile is an object with cap, note and measurements")
        cap, note = data.get("cap"), data.get("note", "")
        if not (cap is None or isinstance(cap, str)) or not isinstance(note, str):
            raise UsageError("cap of a CPU profile is text or null, and note is text")
        return cls(
            measurements={
                str(name): _measurement(str(name), value)
                for name, value in data["measurements"].items()
            },
            cap=cap,
            origin=origin,
            note=note,
        )

    @classmethod
    def from_json(cls, text: str, *, origin: Origin) -> CpuProfile:
        """Return the profile in the text of a file. Raises UsageError."""
        try:
            data = json.loads(text)
        except ValueError as err:
            raise UsageError(f"a CPU profile is JSON; got {text[:40]!r}: {err}") from err
        return cls.from_dict(data, origin=origin)

    def summary(self) -> str:
        """Return the combinations and their times in one line, fastest first."""
        timed = sorted(
            self.measurements.items(), key=lambda item: item[1].milliseconds or float("inf")
        )
        text = ", ".join(f"{name} {one}" for name, one in timed) or "nothing was run"
        return f"{text}; ONEDNN_MAX_CPU_ISA={self.cap} is needed" if self.cap else text


def _measurement(name: str, value: Any) -> Measurement:
    known = [f"{library} {precision}" for library, ps in COMBINATIONS.items() for precision in ps]
    if name not in known:
        raise UsageError(f"{name!r} in a CPU profile; expected one of {', '.join(known)}")
    if not isinstance(value, Mapping) or value.get("status") not in get_args(Status):
        raise UsageError(f"{name} in a CPU profile has no status of {', '.join(get_args(Status))}")
    milliseconds = value.get("milliseconds")
    numeric = isinstance(milliseconds, (int, float)) and not isinstance(milliseconds, bool)
    if milliseconds is not None and not (numeric and 0 < milliseconds < float("inf")):
        raise UsageError(f"milliseconds of {name} is {milliseconds!r}; expected a positive number")
    return Measurement(
        status=value["status"],
        milliseconds=None if milliseconds is None else float(milliseconds),
        detail=str(value.get("detail", "")),
        capped=value.get("capped") is True,
    )
