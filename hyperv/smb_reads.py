"""Reads of one SMB connection: many under way at a time, into the buffers of those who asked.

Data path: `smb_files` asks `SmbReads.fill` -> READ requests as the credits allow, packed here ->
`smb_transport` receives the answers into the buffers and says so. Who waits is woken when all of
its own is there; the receiving thread sends what is next, so the host always has something to do.

Invariants: requests are sent in the order they were asked for, whoever asked; no more is under way
than the host gave credits for, and a few credits are left for opening and closing files. With few
credits reads get smaller instead of failing. A wait ends: a host that answers nothing for so long
loses the connection.

Thread model: any thread; one receiving thread (smbprotocol's). Source: [MS-SMB2] 3.2.4.1.2,
3.2.4.6, 3.2.5.11.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from smbprotocol.exceptions import SMBConnectionClosed, SMBException

from hyperv.smb_messages import (
    CREDIT_BYTES,
    FLAG_DFS,
    FLAG_SIGNED,
    Header,
    ReadRequest,
    cost,
)
from hyperv.smb_protection import SmbProtection
from hyperv.smb_transport import SmbTransport

READ_BYTES: Final = 1 << 20  # of one request
WANTED_CREDITS: Final = 256  # sixteen such reads under way
ANSWER_TIMEOUT_S: Final = 120  # a disk under load may take its time
_SPARE_CREDITS = 8  # for what is no read


class ReadRefusedError(Exception):
    """The host answered a read with `status`; 0: with `length` bytes only."""

    def __init__(self, status: int, asked: int, length: int) -> None:
        super().__init__(f"a read of {asked} bytes: status {status:#010x}, {length} bytes")
        self.status = status
        self.asked = asked
        self.length = length


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTarget:
    """An open file."""

    tree_id: int
    file_id: bytes
    is_sealed: bool
    is_dfs: bool


@dataclass(slots=True, kw_only=True, eq=False)
class _Batch:
    target: ReadTarget
    left: int  # bytes without an answer
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Range:
    """Not asked of the host yet, or (with its cost) under way."""

    batch: _Batch
    offset: int
    buffer: memoryview
    credits: int = 0


class SmbReads:
    def __init__(self, connection: Any, session: Any) -> None:
        """Takes over the transport of a connection of smbprotocol that is logged in."""
        self._connection = connection
        self._session_id = int(session.session_id)
        self._protection = SmbProtection(connection, session)
        self._most_bytes = CREDIT_BYTES
        if connection.supports_multi_credit:
            self._most_bytes = min(READ_BYTES, int(connection.max_read_size))
        self._lock = threading.Lock()
        self._queue: deque[_Range] = deque()
        self._under_way: dict[int, _Range] = {}  # by message id
        self._credits_under_way = 0
        self._end: tuple[type[Exception], str] | None = None
        self._heard_s = 0.0
        self._transport = SmbTransport(
            connection.transport, self._protection, self, is_sealed=bool(session.encrypt_data)
        )
        connection.transport = self._transport

    def fill(self, target: ReadTarget, wanted: Sequence[tuple[int, memoryview]]) -> None:
        """Fill every buffer (writable, bytes) from its offset in the file.

        Nothing writes to the buffers once this returned or raised. Raises:
            ReadRefusedError: the host refused, or has less.
            SMBConnectionClosed, SMBException, UnprotectedError, OSError: the connection is lost.
        """
        batch = _Batch(target=target, left=sum(len(buffer) for _, buffer in wanted))
        if not batch.left:
            return
        ranges = [_Range(batch=batch, offset=o, buffer=b) for o, b in wanted if len(b)]
        try:
            with self._lock:
                if self._end is not None:
                    kind, text = self._end
                    raise kind(text)
                self._queue.extend(ranges)
            self._send_more()
            self._wait(batch)
        except BaseException:
            self._connection.disconnect(False)
            raise
        if batch.error is not None:
            raise batch.error

    def _wait(self, batch: _Batch) -> None:
        asked_s = time.monotonic()
        while True:
            left_s = max(asked_s, self._heard_s) + ANSWER_TIMEOUT_S - time.monotonic()
            if left_s <= 0:
                raise SMBException(f"the host did not answer for {ANSWER_TIMEOUT_S} s")
            if batch.done.wait(left_s):
                return

    def _send_more(self) -> None:
        """Ask for as much as the credits allow."""
        with self._lock:
            messages = []
            while self._queue and (message := self._next_message()) is not None:
                messages.append(message)
            lost = "the host grants no credits" if self._queue and not self._under_way else ""
            try:
                if messages:
                    self._transport.send_all(messages)
            except (OSError, SMBException) as error:
                lost = str(error)
        if lost:
            self._transport.end(SMBConnectionClosed, lost)

    def _next_message(self) -> bytes | None:
        first = self._queue[0]
        taken = self._take_credits(min(len(first.buffer), self._most_bytes))
        if taken is None:
            return None
        message_id, length, asked = taken
        request = _Range(
            batch=first.batch,
            offset=first.offset,
            buffer=first.buffer[:length],
            credits=cost(length),
        )
        first.offset, first.buffer = first.offset + length, first.buffer[length:]
        if not first.buffer:
            self._queue.popleft()
        self._under_way[message_id] = request
        self._credits_under_way += request.credits
        target = request.batch.target
        message = ReadRequest(
            message_id=message_id,
            credits_used=request.credits if self._connection.supports_multi_credit else 0,
            credits_asked=asked,
            flags=(0 if target.is_sealed else FLAG_SIGNED) | (FLAG_DFS if target.is_dfs else 0),
            tree_id=target.tree_id,
            session_id=self._session_id,
            file_id=target.file_id,
            offset=request.offset,
            length=length,
        ).packed()
        if target.is_sealed:
            return self._protection.sealed(message)
        return self._protection.signed(message, message_id)

    def _take_credits(self, length: int) -> tuple[int, int, int] | None:
        """(message id, how much it may read, credits to ask for); None: wait for answers."""
        with self._connection.sequence_lock:
            window = self._connection.sequence_window
            available = int(window["high"] - window["low"])
            if cost(length) + _SPARE_CREDITS > available:
                if self._under_way or not available:
                    return None
                spare = min(_SPARE_CREDITS, available // 2)
                length = min(length, (available - spare) * CREDIT_BYTES)
            message_id = int(window["low"])
            window["low"] += cost(length)
        lacking = WANTED_CREDITS - available - self._credits_under_way
        return message_id, length, cost(length) + max(lacking, 0)

    # What `smb_transport` says, on the receiving thread

    def buffer_of(self, message_id: int) -> memoryview | None:
        request = self._under_way.get(message_id)
        return None if request is None else request.buffer

    def credit(self, header: Header) -> None:
        with self._connection.sequence_lock:
            self._connection.sequence_window["high"] += header.credits

    def finished(self, message_id: int) -> None:
        with self._lock:
            self._answered(message_id)
        self._send_more()

    def refused(self, message_id: int, status: int, length: int) -> None:
        with self._lock:
            request = self._under_way[message_id]
            batch = request.batch
            batch.error = ReadRefusedError(status, len(request.buffer), length)
            batch.left -= sum(len(each.buffer) for each in self._queue if each.batch is batch)
            self._queue = deque(each for each in self._queue if each.batch is not batch)
            self._answered(message_id)
        self._send_more()

    def broken(self, kind: type[Exception], text: str) -> None:
        with self._lock:
            self._end = self._end or (kind, text)
            kind, text = self._end
            batches = {id(each.batch): each.batch for each in self._queue}
            batches |= {id(each.batch): each.batch for each in self._under_way.values()}
            self._queue.clear()
            self._under_way.clear()
            for batch in batches.values():
                batch.error = kind(text)
                batch.done.set()

    def _answered(self, message_id: int) -> None:
        request = self._under_way.pop(message_id)
        self._credits_under_way -= request.credits
        self._heard_s = time.monotonic()
        request.batch.left -= len(request.buffer)
        if not request.batch.left:
            request.batch.done.set()
