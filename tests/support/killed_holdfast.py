"""`holdfast` killed with SIGKILL at the N-th thing it does: a process that forks one per order.

    with killer(home) as program:
        ended = program.run("backup", "vm", "web")           # to its end: counts the points
        ended = program.run("backup", "vm", "web", kill_at=7)

Counted are the moments around which a crash matters: before a request goes out, after an answer has
come in, before a name appears, moves or goes in a file system. The forking process has loaded
everything and runs no thread, so a run costs what it does and no start-up.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.holdfast_program import ROOT, environment

_EVENTS = frozenset({"http.client.send", "os.link", "os.rename", "os.remove"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    killed: bool
    exit_code: int
    points: int  # passed, when it was not killed


class Killer:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *words: str, kill_at: int | None = None) -> Ended:
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"words": words, "kill_at": kill_at}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


@contextmanager
def killer(home: Path) -> Iterator[Killer]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.killed_holdfast"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(home),
        cwd=ROOT,
        text=True,
    )
    try:
        yield Killer(process)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def _serve() -> None:
    _load()
    for line in sys.stdin:
        order = json.loads(line)
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_fd)
            _child(order["words"], order["kill_at"], write_fd)
        os.close(write_fd)
        with os.fdopen(read_fd) as pipe:
            points = int(pipe.read() or 0)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        ended = {"killed": code == -signal.SIGKILL, "exit_code": code, "points": points}
        print(json.dumps(ended), flush=True)


def _load() -> None:

    assert threading.active_count() == 1, "a fork would lose threads"


def _child(words: list[str], kill_at: int | None, write_fd: int) -> None:
    """Never returns."""
    from appliance.cli.main import main

    counter = _Counter(kill_at)
    sys.addaudithook(counter.heard)
    answer = http.client.HTTPConnection.getresponse

    def getresponse(self: Any) -> Any:
        response = answer(self)
        counter.passed()
        return response

    http.client.HTTPConnection.getresponse = getresponse  # type: ignore[method-assign,assignment]
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    code = 99
    with contextlib.suppress(SystemExit):
        code = main([*words, "--quiet"])
    os.write(write_fd, str(counter.points).encode())
    os._exit(code)


class _Counter:
    def __init__(self, kill_at: int | None) -> None:
        self._kill_at = kill_at
        self._lock = threading.Lock()
        self.points = 0

    def heard(self, event: str, _arguments: object) -> None:
        if event in _EVENTS:
            self.passed()

    def passed(self) -> None:
        with self._lock:
            self.points += 1
            if self.points == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve()
