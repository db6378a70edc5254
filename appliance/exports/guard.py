"""A shell that does one last thing when this process ends without having said that all is over.

Killed, we can clean up nothing ourselves; the guard notices by the pipe that it reads from us.
Thread model: one thread at a time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress


class Guard:
    def __init__(self, last_thing: str, *arguments: str, held_fds: Sequence[int] = ()) -> None:
        """`last_thing`: shell commands of ours, to which `arguments` are "$1" and on.

        `held_fds` are kept open until it is over. Raises OSError.
        """
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", f"read -r told || {{ {last_thing}; }}", "holdfast-guard", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=held_fds,
            start_new_session=True,
        )

    def end(self) -> None:
        """It is over: the guard ends and does nothing. Idempotent."""
        with suppress(BrokenPipeError, ValueError):  # it ended before; its pipe was closed then
            self._process.communicate(b"over\n")
        self._process.wait()
