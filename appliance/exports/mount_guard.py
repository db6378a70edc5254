"""The end of a server's child when ours comes unannounced: a second child that survives us.

    we ---- pipe ----> guard (sh) --- kill -9 ---> server ----> file of `device_files`

Killed while a host writes, we would leave a server whose file answers errors, and it would tell the
host that its disk is broken. So the guard holds the kernel's end of the mount open (the kernel then
waits instead of failing) and, once our end of its pipe closes, kills the server first and unmounts
after. The host sees a lost connection, and tries again until we are back.

Thread model: `start` and `end` by one thread.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Ends at once when told so by a line; a closed pipe means that we are gone.
_GUARD = 'read -r told || { kill -KILL -- "$1"; fusermount -u -q -z "$2"; }'


class MountGuard:
    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, victim: int, mount: Path, held_fds: Sequence[int]) -> None:
        """`victim`: a process id, or minus that of a group. `held_fds`: of the mount."""
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "holdfast-guard", str(victim), str(mount)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=held_fds,
            start_new_session=True,
        )

    def end(self) -> None:
        """Before the victim is reaped, or it would kill what got its number next. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(BrokenPipeError):
            process.communicate(b"over\n")
        process.wait()
