"""A restore or a roll-back in a process of its own that is killed where it has stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.holdfast_program import ROOT, environment


def kill_restore(home: Path, *words: str) -> None:
    """Run `restore_driver` until it has stopped, and kill it there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.restore_driver", str(home), *words],
        env=environment(home),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "STOPPED\n"
    finally:
        process.kill()
        process.wait(timeout=30)
        process.stdout.close()
