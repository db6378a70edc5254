"""Something the daemon does again and again on a thread of its own: look, log, wait.

A look that fails is logged and the next one comes as ever: one defect must not end the scheduler,
the notifications or the clean-up until somebody starts the daemon anew.

Thread model: the look runs on the task's own thread, one at a time; every method from any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog

log = EventLog(__name__)


class PeriodicTask:
    def __init__(self, name: str, look: Callable[[], float | None], *, every_s: float) -> None:
        """Nothing runs before `start`.

        `name` is that of the thread and of what is logged. `look` returns after how many seconds it
        wants to be called again; None, or an exception: after `every_s`.
        """
        self._name = name
        self._look = look
        self._every_s = every_s
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    @property
    def stopping(self) -> bool:
        """For a long look, which ends early then."""
        return self._stopping.is_set()

    def start(self) -> None:
        """The first look is at once. A task starts once in its life."""
        self._thread.start()

    def wake(self) -> None:
        """Look now, or once more after the look that goes on: it may have missed the cause."""
        self._wake.set()

    def stop(self) -> None:
        """Return when the look that goes on has ended; no other follows. Idempotent."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            if self._stopping.is_set():  # looked at after the clear, which may undo `stop`'s wake
                return
            self._wake.wait(self._look_once())

    def _look_once(self) -> float:
        try:
            pause_s = self._look()
        except ApplianceError as error:
            log.error("a periodic task failed", task=self._name, code=error.code, error=error)
            pause_s = None
        except Exception:  # a defect of one look must not end all of them
            log.exception("a periodic task met a defect", task=self._name)
            pause_s = None
        return self._every_s if pause_s is None else pause_s
