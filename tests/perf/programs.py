"""Running what is measured: one timed command, or a server for the length of a block.

Every program runs in a session of its own with a deadline, and whatever is left of that session is
killed by its process group however the block ends. A program that is missing or fails is a
NotMeasuredError: a row of the table, not the end of the run.

Peak memory is the kernel's ru_maxrss of the child. That figure starts at the size of the process
that forked it, so this process must stay small: nothing here loads an image.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

DEFAULT_TIMEOUT_S = 900.0
_TAIL_BYTES = 600


class NotMeasuredError(Exception):
    """A figure is missing; the message is the reason that the table shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    stdout: str


def require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise NotMeasuredError(f"missing program: {', '.join(missing)}")


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    accept: Sequence[int] = (0,),
) -> Run:
    """Run to the end and return what it took. Raises NotMeasuredError when it fails or hangs."""
    require(str(command[0]))
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started = time.perf_counter()
        process = _start(command, environment, folder, stdout, stderr)
        with _killed_at_the_end(process):
            status, usage = _wait(process, started + timeout_s, command)
            seconds = time.perf_counter() - started
        if status not in accept:
            raise NotMeasuredError(f"{_name(command)} exited with {status}: {_tail(stderr)}")
        stdout.seek(0)
        return Run(
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_rss_bytes=usage.ru_maxrss * 1024,
            stdout=stdout.read().decode(errors="replace"),
        )


@contextlib.contextmanager
def server(
    command: Sequence[str | Path],
    *,
    ready: Callable[[IO[bytes]], bool],
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a server running for the block; `ready` is asked with its stdout until it says yes."""
    require(str(command[0]))
    with tempfile.NamedTemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = _start(command, environment, None, stdout, stderr)
        with _killed_at_the_end(process), open(stdout.name, "rb") as output:
            deadline = time.perf_counter() + timeout_s
            while not ready(output):
                if process.poll() is not None:
                    raise NotMeasuredError(f"{_name(command)} ended: {_tail(stderr)}")
                if time.perf_counter() > deadline:
                    raise NotMeasuredError(f"{_name(command)} not ready after {timeout_s:.0f} s")
                time.sleep(0.01)
            yield process


def sync() -> None:
    """Bring what earlier steps wrote to disk, so that the next one does not pay for it."""
    os.sync()


def tree_bytes(folder: Path) -> int:
    """What a repository takes: the sum of its file sizes."""
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files)


def _start(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None,
    folder: Path | None,
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, **(environment or {})},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


def _wait(
    process: subprocess.Popen[bytes], deadline: float, command: Sequence[str | Path]
) -> tuple[int, resource.struct_rusage]:
    """wait4 with a deadline: a pidfd becomes readable when the process has ended."""
    fd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.perf_counter()) * 1000):
            raise NotMeasuredError(f"{_name(command)} was stopped at its time limit")
    finally:
        os.close(fd)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage


@contextlib.contextmanager
def _killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it may have left of its session
        process.wait()


def _tail(stream: IO[bytes]) -> str:
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - _TAIL_BYTES))
    return " ".join(stream.read().decode(errors="replace").split())


def _name(command: Sequence[str | Path]) -> str:
    return Path(command[0]).name if command[0] != sys.executable else "holdfast"
