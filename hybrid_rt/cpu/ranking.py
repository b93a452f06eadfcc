"""The fastest validated way to run a file on this CPU, by the CPU's measured profile.

Which precision is fastest differs between processors and can be the opposite of what their flags
suggest, so nothing is ranked by name. Each combination of backend and precision that a parity
report covers is ranked by the time that a small network of the same kind took here
(``hybrid_rt.cpu``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hybrid_rt.bundle.manifest import BundleFile
from hybrid_rt.bundle.validated import Combination, cpu_reports, precision_hint
from hybrid_rt.cpu import CpuProfile

#: Decides between combinations whose times differ by less than a measurement's noise, or that were
#: not measured.
_PREFERENCE: tuple[Combination, ...] = (
    ("openvino", "int8+bf16"),
    ("openvino", "int8"),
    ("onnxruntime", "int8"),
    ("openvino", "bf16"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
)
_NOISE = 1.05
#: Between two backends in one precision the probe's network is a poorer guide, since its weights
#: stay in a large cache: OpenVINO fp32 30 ms to ONNX Runtime's 19, of the real network 240 ms to
#: 246 (two cores of an AMD EPYC). In INT8, where it matters, they are further apart.
_NOISE_OF_BACKENDS = 1.6


@dataclass(frozen=True)
class Candidate:
    """A file, the backend and precision to run it in, and the small network's milliseconds."""

    name: str
    combination: Combination
    milliseconds: float | None

    @property
    def backend(self) -> str:
        return self.combination[0]

    @property
    def hint(self) -> str | None:
        """``precision`` for the session."""
        return precision_hint(self.combination)

    def __str__(self) -> str:
        backend, precision = self.combination
        speed = "" if self.milliseconds is None else f" {self.milliseconds:.1f} ms"
        return f"{precision} on {backend}{speed}"


def candidates(
    files: Mapping[str, BundleFile],
    profile: CpuProfile,
    backends: Collection[str],
    *,
    precision: str | None = None,
) -> list[Candidate]:
    """Return the validated combinations that run here, best first.

    ``backends`` are those that may be used; ``precision`` "fp32" or "bf16" keeps those that compute
    in it.
    """
    found = []
    for name, entry in files.items():
        for combination in cpu_reports(entry):
            candidate = Candidate(name, combination, profile.milliseconds(*combination))
            if combination[0] not in backends or not profile.runs(*combination):
                continue
            if precision in ("fp32", "bf16") and candidate.hint != precision:
                continue
            found.append(candidate)
    # Of two files that run alike, the one that leaves the precision to the library.
    found.sort(key=lambda c: (_time(c), _place(c), files[c.name].precision != "fp32"))
    close = [c for c in found if _is_close(c, found[0])]
    close.sort(key=lambda c: (_place(c), files[c.name].precision != "fp32"))
    return [*close, *(c for c in found if c not in close)]


def describe(found: list[Candidate], profile: CpuProfile) -> str:
    """Return why the first one was taken, with the measured times."""
    if profile.origin in ("off", "fallback"):
        return f"{found[0]}; {profile.note}"
    others = list(dict.fromkeys(str(c) for c in found[1:]))
    if not others:
        return f"the only validated combination that runs on this CPU, {found[0]}"
    return (
        f"fastest validated combination on this CPU, {found[0]} for the probe's network; "
        f"others: {', '.join(others)}"
    )


def _is_close(candidate: Candidate, best: Candidate) -> bool:
    alike = candidate.combination[1] == best.combination[1]
    return _time(candidate) <= (_NOISE_OF_BACKENDS if alike else _NOISE) * _time(best)


def _time(candidate: Candidate) -> float:
    return float("inf") if candidate.milliseconds is None else candidate.milliseconds


def _place(candidate: Candidate) -> int:
    known = candidate.combination in _PREFERENCE
    return _PREFERENCE.index(candidate.combination) if known else len(_PREFERENCE)
