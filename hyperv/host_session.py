"""A Hyper-V host as what calls are made on: any thread, a few shells, retries where they are safe.

Data path: everything of `hyperv/` that asks a host does it with `HostSession.call`; below are
`WinrmSession`s, one per call that is under way at the same time, kept for the next one.

Retries: a call that the host had no room for, or that never reached it, is repeated whatever it
does. One whose end is not known (the shell was lost) is repeated only when it changes nothing or is
written to be repeatable (`_REPEATABLE`).

Thread model: any thread. Source: `scripts/CONTRACT.md`, WinRM quotas.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from hyperv.envelope import AnswerT
from hyperv.errors import (
    BusyError,
    CancelledError,
    HypervError,
    SessionLostError,
    UnreachableError,
)
from hyperv.patience import Patience
from hyperv.winrm_session import Endpoint, WinrmSession

CALL_DEADLINE_S: Final = 300.0
SHELLS: Final = 4  # at once and per host; a user may have 30
TRIES: Final = 4
_PAUSE_S = 2.0
_NOT_REPEATABLE = frozenset(
    {
        "attach_disk",
        "convert_to_reference_point",
        "create_checkpoint",
        "create_shadow",
        "import_disk",
        "new_vm",
        "swap_disks",
    }
)


class HostSession:
    """Connects at the first call; close it when done."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        patience: Patience | None = None,
        open_shell: Callable[[Endpoint], WinrmSession] = WinrmSession,
    ) -> None:
        self.endpoint = endpoint
        self._patience = patience or Patience()
        self._open_shell = open_shell
        self._slots = threading.BoundedSemaphore(SHELLS)
        self._lock = threading.Lock()
        self._idle: list[WinrmSession] = []
        self._is_closed = False

    @property
    def address(self) -> str:
        return self.endpoint.address

    def call(
        self,
        name: str,
        parameters: Mapping[str, Any],
        kind: type[AnswerT],
        *,
        deadline_s: float = CALL_DEADLINE_S,
        patience: Patience | None = None,
        tries: int = TRIES,
    ) -> AnswerT:
        """Run a script, repeating it where that is safe. Blocks.

        Raises: as `WinrmSession.call`; CancelledError: `patience` says so.
        """
        patience = patience or self._patience
        pause_s = _PAUSE_S
        for remaining in range(tries - 1, -1, -1):
            patience.check()
            try:
                with self._shell() as shell:
                    return shell.call(
                        name, parameters, kind, deadline_s=deadline_s, check=patience.check
                    )
            except (BusyError, UnreachableError, SessionLostError) as error:
                if remaining == 0 or not _may_repeat(name, error):
                    raise
            patience.pause(pause_s)
            pause_s *= 2
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Close all shells; idempotent, never raises."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for shell in idle:
            shell.close()

    @contextmanager
    def _shell(self) -> Iterator[WinrmSession]:
        """A shell for one call; whatever the call raises, it is kept or closed."""
        with self._slots:
            with self._lock:
                if self._is_closed:
                    raise CancelledError(f"{self.address}: the session was closed")
                shell = self._idle.pop() if self._idle else self._open_shell(self.endpoint)
            try:
                yield shell  # one that broke has closed itself, and begins anew
            finally:
                with self._lock:
                    if not self._is_closed:
                        self._idle.append(shell)
                    is_kept = not self._is_closed
                if not is_kept:
                    shell.close()


def _may_repeat(name: str, error: HypervError) -> bool:
    return not isinstance(error, SessionLostError) or name not in _NOT_REPEATABLE
