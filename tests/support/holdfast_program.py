"""The `holdfast` program as a child process, from this checkout's own code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAM = "appliance.cli.main"
_TIMEOUT_S = 240


def command(*words: str | Path, program: str = PROGRAM) -> list[str]:
    return [sys.executable, "-m", program, *map(str, words)]


def environment(home: Path, **extra: str) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")
    }
    return inherited | {"HOLDFAST_HOME": str(home), "PYTHONPATH": str(ROOT)} | extra


def run(
    home: Path, *words: str | Path, expect: int | None = 0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; assert its exit code unless `expect` is None."""
    done = subprocess.run(
        command(*words),
        env=environment(home, **extra),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if expect is not None:
        assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def run_json(home: Path, *words: str | Path, expect: int = 0, **extra: str) -> Any:
    """Run a command with --json and return its document."""
    return json.loads(run(home, *words, "--json", expect=expect, **extra).stdout)


@contextmanager
def serving(
    home: Path,
    *words: str | Path,
    program: str = PROGRAM,
    with_environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """Run a command that serves; yield it and the document it prints when it is ready."""
    process = subprocess.Popen(
        [*command(*words, program=program), "--json"],
        env=with_environment or environment(home),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith(("}", "]")):
                break
        yield process, json.loads(text)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=30)
        process.stdout.close()
