"""One command in a remote shell: a program on a thread of its own between three pipes.

Invariants: at most `PIPE_BYTES_MAX` wait in each direction; a writer that finds its pipe full
waits, as on a real pipe, and a terminated command's program gets `CommandEndedError` at its next
read or write. Output that was received is gone. Thread model: the program's thread on one side,
the threads of the connections on the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lab.hyperv_host.wsman_faults import WsmanCode, WsmanFaultError

log = logging.getLogger(__name__)

PIPE_BYTES_MAX = 16 << 20
_CRASHED = 0xC0000142 - (1 << 32)


class CommandEndedError(Exception):
    """The command was terminated, or its shell is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """As it was sent; `direct` means without cmd.exe in between (WINRS_SKIP_CMD_SHELL)."""

    command: str
    arguments: tuple[str, ...]
    direct: bool

    @property
    def text(self) -> str:
        return " ".join((self.command, *self.arguments))


class Pipes(Protocol):
    """What a program sees of its command."""

    label: str  # set by the program once it knows what it was asked, for the fault switches

    def read_all(self) -> bytes:
        """Wait for the end of stdin. Raises CommandEndedError."""
        ...

    def write(self, stream: str, data: bytes) -> None:
        """`stream` is stdout or stderr. Raises CommandEndedError."""
        ...


Program = Callable[[CommandLine, Pipes], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    streams: tuple[tuple[str, bytes], ...]
    exit_code: int | None  # known when the command is done and everything was received


class Command:
    def __init__(self, command_id: str, line: CommandLine, program: Program) -> None:
        self.command_id = command_id
        self.label = ""
        self._state = threading.Condition()
        self._stdin = bytearray()
        self._stdin_ended = False
        self._output: list[tuple[str, bytes]] = []
        self._terminated = False
        self._exit_code: int | None = None
        self._thread = threading.Thread(
            target=self._run, args=(line, program), name="lab-winrs", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    # ------------------------------------------------------------------ the client's side

    def send(self, data: bytes, *, end: bool) -> None:
        """Raises WsmanFaultError: stdin was closed before, or holds too much."""
        with self._state:
            if self._stdin_ended or self._exit_code is not None:
                raise WsmanFaultError(WsmanCode.NO_DATA)
            if len(self._stdin) + len(data) > PIPE_BYTES_MAX:
                raise WsmanFaultError(WsmanCode.MAX_OPERATIONS, "the input is too long")
            self._stdin += data
            self._stdin_ended = end
            self._state.notify_all()

    def receive(self, limit_bytes: int, timeout_s: float) -> Output:
        """Wait for output or the end. Raises WsmanFaultError: neither came in time, or aborted."""
        deadline = time.monotonic() + timeout_s
        with self._state:
            self._state.wait_for(self._has_news, max(0.0, deadline - time.monotonic()))
            if self._terminated:
                raise WsmanFaultError(WsmanCode.ABORTED)
            if not self._has_news():
                raise WsmanFaultError(WsmanCode.OPERATION_TIMED_OUT)
            taken = self._take(limit_bytes)
            done = self._exit_code if not self._output else None
            self._state.notify_all()
        return Output(streams=tuple(taken), exit_code=done)

    def terminate(self) -> None:
        """The program is told at its next read or write. Idempotent."""
        with self._state:
            self._terminated = True
            self._state.notify_all()

    def join(self) -> None:
        self._thread.join()

    def _has_news(self) -> bool:
        return bool(self._output) or self._exit_code is not None or self._terminated

    def _take(self, limit_bytes: int) -> list[tuple[str, bytes]]:
        taken = []
        while self._output and limit_bytes > 0:
            stream, data = self._output.pop(0)
            if len(data) > limit_bytes:
                self._output.insert(0, (stream, data[limit_bytes:]))
                data = data[:limit_bytes]
            limit_bytes -= len(data)
            taken.append((stream, data))
        return taken

    # ------------------------------------------------------------------ the program's side

    def read_all(self) -> bytes:
        with self._state:
            self._state.wait_for(lambda: self._stdin_ended or self._terminated)
            if self._terminated:
                raise CommandEndedError
            data = bytes(self._stdin)
            self._stdin.clear()
        return data

    def write(self, stream: str, data: bytes) -> None:
        if not data:
            return
        with self._state:
            self._state.wait_for(lambda: self._waiting() <= PIPE_BYTES_MAX or self._terminated)
            if self._terminated:
                raise CommandEndedError
            self._output.append((stream, data))
            self._state.notify_all()

    def _waiting(self) -> int:
        return sum(len(data) for _, data in self._output)

    def _run(self, line: CommandLine, program: Program) -> None:
        try:
            exit_code = program(line, self)
        except CommandEndedError:
            exit_code = 1
        except Exception:  # a client waits for the exit code
            log.exception("the program %s of the lab failed", line.command)
            exit_code = _CRASHED
        with self._state:
            self._exit_code = exit_code
            self._state.notify_all()
