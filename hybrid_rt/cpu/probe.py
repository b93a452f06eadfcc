"""Run the combinations of some libraries in child processes, and record the outcome of each.

A CPU may list instructions that the machine does not have. A library that uses them ends the
process by a signal, without a message (seen with oneDNN in PyTorch and OpenVINO on virtual machines
that leave AMX's tile palette empty). So combinations are tried in processes of their own.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hybrid_rt.cpu.profile import COMBINATIONS, CpuProfile, Measurement
from hybrid_rt.processes import child_command

#: The variable that oneDNN reads when a library first uses it, and the most that is left to it: all
#: of AVX-512 without AMX.
CAP_VARIABLE, CAP = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16"

#: Seconds for one child; it takes about 2 on an idle machine with two cores.
LIMIT = 60.0

_WORKLOAD = "hybrid_rt.cpu.workload"


@dataclass(kw_only=True)
class Child:
    """What a child printed and how it ended: its exit code, and whether it hung."""

    ran: list[str] = field(default_factory=list)
    problems: dict[str, Measurement] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    trying: str | None = None
    code: int = 0
    hung: bool = False
    errors: str = ""


Run = Callable[[Sequence[str], Mapping[str, str]], Child]


def run_child(combinations: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Try the combinations in one child process. Raises OSError if none can start."""
    command = child_command(_WORKLOAD, *combinations)
    child = Child()
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIMIT,
            check=False,
        )
        printed, child.errors, child.code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as err:
        found = err.stdout or b""
        printed = found.decode("utf-8", "replace") if isinstance(found, bytes) else found
        child.hung = True
    for line in printed.splitlines():
        _read(line, child)
    return child


def probe(
    libraries: Sequence[str], environment: Mapping[str, str], *, run: Run = run_child
) -> CpuProfile:
    """Try and time all combinations of the libraries, which have to be installed.

    If one dies, hangs or is wrong, all are tried once more under the cap on the instruction set,
    which holds for a process. ``run`` is for tests. Raises OSError if no child process can start.
    """
    wanted = [
        f"{library} {precision}" for library in libraries for precision in COMBINATIONS[library]
    ]
    found = _try_all(wanted, environment, run, stop_at_fault=True)
    faults = {name: one for name, one in found.items() if one.status in ("died", "hung", "wrong")}
    if not faults:
        return CpuProfile(measurements=found)
    capped = _try_all(wanted, {**environment, CAP_VARIABLE: CAP}, run, stop_at_fault=False)
    if not any(capped[name].status == "ran" for name in faults):  # the cap is no cure
        return CpuProfile(measurements=_try_all(wanted, environment, run, stop_at_fault=False))
    reasons = "; ".join(f"{name} {one}" for name, one in faults.items())
    return CpuProfile(
        measurements={name: replace(one, capped=True) for name, one in capped.items()},
        cap=CAP,
        note=f"without {CAP_VARIABLE}={CAP}: {reasons}",
    )


def _try_all(
    wanted: Sequence[str], environment: Mapping[str, str], run: Run, *, stop_at_fault: bool
) -> dict[str, Measurement]:
    """The outcome of each; a child that ends early is followed by one for those that are left.

    ``stop_at_fault`` stops after the first child that did not end well.
    """
    found: dict[str, Measurement] = {}
    left = list(wanted)
    while left:
        child = run(left, environment)
        found |= child.problems
        if child.milliseconds:
            times = child.milliseconds
            found |= {
                name: Measurement(status="ran", milliseconds=times[name]) for name in child.ran
            }
            break
        # What ran in a child that ended early is run again in the next, to be timed.
        culprit = child.trying if child.trying in left else None
        if culprit is None and child.ran:  # while timing: all of it is in doubt
            found |= {name: _fault(child) for name in child.ran}
            break
        if culprit is None:
            found |= {name: _fault(child) for name in left if name not in found}
            break
        found[culprit] = _fault(child)
        if stop_at_fault:
            break
        left = [name for name in left if name not in found]
    return found


def _fault(child: Child) -> Measurement:
    if child.hung:
        return Measurement(status="hung", detail=f"no end within {LIMIT:.0f} s")
    if child.code < 0:
        return Measurement(status="died", detail=_signal_name(-child.code))
    lines = [line.strip() for line in child.errors.splitlines() if line.strip()]
    return Measurement(
        status="failed", detail=(lines[-1] if lines else f"exit code {child.code}")[:200]
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read(line: str, child: Child) -> None:
    """Read one line of the workload; a library's own output is skipped."""
    try:
        values: Any = json.loads(line)
    except ValueError:
        return
    if not isinstance(values, dict):
        return
    if "trying" in values:
        child.trying = str(values["trying"])
    elif "ran" in values:
        child.ran.append(str(values["ran"]))
    elif "failed" in values:
        detail = str(values.get("detail", ""))
        status = "wrong" if values.get("status") == "wrong" else "failed"
        child.problems[str(values["failed"])] = Measurement(status=status, detail=detail)  # type: ignore[arg-type]
    elif isinstance(values.get("milliseconds"), dict):
        child.milliseconds = {str(k): float(v) for k, v in values["milliseconds"].items()}
