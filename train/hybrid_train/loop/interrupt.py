"""Ctrl-C and SIGTERM end a run after the current batch, so that its state is saved."""

from __future__ import annotations

import signal
from types import TracebackType


class StopRequest:
    """A context in which a first signal sets ``asked``; a second one interrupts."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, *_: object) -> None:
        if self.asked:  # a second signal
            raise KeyboardInterrupt
        self.asked = True
