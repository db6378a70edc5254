"""A client of the QEMU Machine Protocol with events and block jobs, over a connected socket.

Speaks to a virtual machine's QEMU and to qemu-storage-daemon alike. A reader thread takes
messages apart: answers go to the caller that waits, events to `wait_event` and `on_event`.
Invariants: one command is outstanding at a time; a message is at most `MESSAGE_BYTES_MAX` long;
the last `_EVENTS_MAX` events are kept. Thread model: any thread; `on_event` is called on the
reader thread and must not execute commands.
Source: QEMU docs/interop/qmp-spec.rst, qapi/job.json.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lab.esx.errors import HostError

MESSAGE_BYTES_MAX = 4 << 20
_REPLY_TIMEOUT_S = 60.0
_EVENTS_MAX = 1000


class QmpError(HostError):
    """QEMU refused a command, or is gone."""


class Qmp:
    """Owns `connection`; the constructor negotiates capabilities."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        on_event: Callable[[str, dict[str, Any]], None] = lambda name, data: None,
    ) -> None:
        self._socket = connection
        self._on_event = on_event
        self._state = threading.Condition()
        self._command_lock = threading.Lock()
        self._events: deque[tuple[int, str, dict[str, Any]]] = deque(maxlen=_EVENTS_MAX)
        self._event_count = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._greeted = False
        self._closed = False
        self._last_id = 0
        self._reader = threading.Thread(target=self._read, name="lab-qmp", daemon=True)
        self._reader.start()
        with self._state:
            greeted = self._state.wait_for(lambda: self._greeted or self._closed, _REPLY_TIMEOUT_S)
        if not greeted or self._closed:
            raise QmpError("QEMU did not greet")
        self.execute("qmp_capabilities")

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, /, **named: Any
    ) -> Any:
        """Return the command's `return`; underscores in names of `named` become dashes.

        Raises:
            QmpError: QEMU reported an error, closed the connection or did not answer in time.
        """
        given = {name.replace("_", "-"): value for name, value in named.items()}
        given.update(arguments or {})
        with self._command_lock:
            self._last_id += 1
            wanted = self._last_id
            request = {"execute": command, "arguments": given, "id": wanted}
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            except OSError as error:
                raise QmpError(f"cannot send {command}: {error}") from error
            with self._state:
                self._state.wait_for(
                    lambda: wanted in self._answers or self._closed, _REPLY_TIMEOUT_S
                )
                message = self._answers.pop(wanted, None)
        if message is None:
            raise QmpError(f"{command}: no answer")
        if "error" in message:
            raise QmpError(f"{command}: {message['error'].get('desc')}")
        return message.get("return")

    @property
    def event_mark(self) -> int:
        """A place in the stream of events, for `wait_event`."""
        with self._state:
            return self._event_count

    def wait_event(
        self,
        matches: Callable[[str, dict[str, Any]], bool],
        *,
        since: int,
        timeout_s: float,
    ) -> tuple[str, dict[str, Any]]:
        """Return the first event after `since` that matches. Raises QmpError at the time's end."""

        def find() -> tuple[str, dict[str, Any]] | None:
            for number, name, data in self._events:
                if number > since and matches(name, data):
                    return name, data
            return None

        with self._state:
            self._state.wait_for(lambda: find() is not None or self._closed, timeout_s)
            found = find()
        if found is None:
            raise QmpError("QEMU ended" if self._closed else "an event did not come in time")
        return found

    def run_job(
        self,
        command: str,
        job_id: str,
        *,
        completing: Callable[[], AbstractContextManager[None]] = nullcontext,
        timeout_s: float = 600.0,
        **named: Any,
    ) -> None:
        """Start a block job, complete it when it is ready, and wait for its end.

        `completing` is held from its being ready to its end; not for a job that ends by itself.

        Raises:
            QmpError: the job failed; the graph is as it was.
        """
        mark = self.event_mark
        self.execute(command, job_id=job_id, auto_dismiss=False, **named)
        self._await_job(job_id, mark, completing, timeout_s)

    def _await_job(
        self,
        job_id: str,
        mark: int,
        completing: Callable[[], AbstractContextManager[None]],
        timeout_s: float,
    ) -> None:
        def is_turn(name: str, data: dict[str, Any]) -> bool:
            return (
                name == "JOB_STATUS_CHANGE"
                and data.get("id") == job_id
                and data.get("status") in ("ready", "concluded")
            )

        _, data = self.wait_event(is_turn, since=mark, timeout_s=timeout_s)
        if data["status"] == "ready":
            with completing():
                self.execute("job-complete", id=job_id)
                self.wait_event(
                    lambda name, data: is_turn(name, data) and data["status"] == "concluded",
                    since=mark,
                    timeout_s=timeout_s,
                )
        errors = [job.get("error") for job in self.execute("query-jobs") if job["id"] == job_id]
        self.execute("job-dismiss", id=job_id)
        if errors and errors[0]:
            raise QmpError(f"{job_id}: {errors[0]}")

    def close(self) -> None:
        self._socket.close()
        if self._reader is not threading.current_thread():
            self._reader.join()

    def _read(self) -> None:
        buffer = bytearray()
        try:
            while data := self._socket.recv(64 * 1024):
                buffer += data
                while (end := buffer.find(b"\n")) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    self._dispatch(json.loads(line))
                if len(buffer) > MESSAGE_BYTES_MAX:
                    break
        except (OSError, ValueError):
            pass  # the end of the connection, as its being closed is
        with self._state:
            self._closed = True
            self._state.notify_all()

    def _dispatch(self, message: dict[str, Any]) -> None:
        name = message.get("event")
        with self._state:
            if name is not None:
                self._event_count += 1
                self._events.append((self._event_count, name, message.get("data", {})))
            elif "QMP" in message:
                self._greeted = True
            elif isinstance(message.get("id"), int):
                self._answers[message["id"]] = message
            self._state.notify_all()
        if name is not None:
            self._on_event(name, message.get("data", {}))
