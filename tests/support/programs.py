"""External programs under a deadline: a hung client must fail its test, not the whole run."""

from __future__ import annotations

import subprocess
from pathlib import Path

DEADLINE_S = 120


def guarded(*command: str | Path) -> list[str]:
    return ["timeout", "--signal=KILL", str(DEADLINE_S), *map(str, command)]


def attempt(
    *command: str | Path, stdin: bytes | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever it is."""
    done = subprocess.run(guarded(*command), input=stdin, capture_output=True, check=False, cwd=cwd)
    return subprocess.CompletedProcess(
        done.args,
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


def run(*command: str | Path, stdin: bytes | None = None, cwd: Path | None = None) -> str:
    """Run, expect success, return what it printed."""
    done = attempt(*command, stdin=stdin, cwd=cwd)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
