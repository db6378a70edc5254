"""Running programs of the system: bounded in time, arguments never hold a secret."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from appliance.machine.errors import MachineCommandError

_TIMEOUT_S = 120.0
_LAST_WORDS_CHARS = 600


def run(
    words: Sequence[str | Path],
    *,
    text: str | None = None,
    good: Sequence[int] = (0,),
    timeout_s: float = _TIMEOUT_S,
) -> str:
    """Return stdout. Raises MachineCommandError: not there, not in time, or another exit code."""
    command = [str(word) for word in words]
    try:
        done = subprocess.run(
            command,
            input=text,
            stdin=None if text is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineCommandError(f"{command[0]}: {error}") from error
    if done.returncode not in good:
        last = (done.stderr or done.stdout).strip()[-_LAST_WORDS_CHARS:]
        raise MachineCommandError(f"{command[0]} exited with {done.returncode}: {last}")
    return done.stdout
