"""Progress of a TensorRT build: one fraction from its nested phases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hybrid_rt.tensorrt.library import TensorRTLibrary

#: Sends an event to the process that started the worker.
Emit = Callable[[dict[str, Any]], None]


def make_monitor(library: TensorRTLibrary, emit: Emit) -> Any:
    """Return an IProgressMonitor that emits ``{"progress": fraction, "phase": name}``.

    Returns None if the library reports no progress (TensorRT 8.6).
    """
    return _progress_monitor(library.module, emit) if library.has_progress else None


def _progress_monitor(trt: Any, emit: Emit) -> Any:
    tracker = _ProgressTracker(emit)

    class PlanMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tracker.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tracker.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            tracker.finish(phase_name)

    return PlanMonitor()


class _ProgressTracker:
    """The fraction done of TensorRT's nested phases; called from several of its threads."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, done
        self._fraction = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[phase] = (parent, max(int(steps), 1), 0)
            self._report(phase)

    def step(self, phase: str, step: int) -> None:
        with self._lock:
            if phase in self._phases:
                parent, steps, _ = self._phases[phase]
                self._phases[phase] = (parent, steps, min(int(step) + 1, steps))
                self._report(phase)

    def finish(self, phase: str) -> None:
        with self._lock:
            self._phases.pop(phase, None)

    def _report(self, phase: str) -> None:
        name: str | None = phase
        fraction, seen = 0.0, set()
        while name in self._phases and name not in seen:
            seen.add(name)
            name, steps, done = self._phases[name]
            fraction = min((done + fraction) / steps, 1.0)
        if fraction - self._fraction >= 0.002:
            self._fraction = fraction
            self._emit({"progress": round(fraction, 4), "phase": phase})
