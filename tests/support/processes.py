"""Processes that are nobody's child here."""

from __future__ import annotations

import time
from pathlib import Path


def wait_until_gone(pid: int, *, within_s: float = 60.0) -> None:
    """Return once the process has ended; its new parent may not have reaped it yet."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} does not end")
