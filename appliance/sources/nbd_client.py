"""A small NBD client: a disk behind an NBD server as a `BlockDevice`.

Data path: `qemu_nbd` joins it to a qemu-nbd child for image formats that are not ours; restore
writes such formats through it. Each call takes one of a few connections for itself and keeps
several requests in flight on it, so there is no reader thread and no hand-over between threads;
payload goes from the socket into the caller's buffer, and from the caller's buffers to the socket.

Every length a server sends is checked against the request before anything is read. A connection
on which anything went wrong half way is closed and stays so; an error that the server reports
leaves it usable.

Thread model: any number of threads; more than there are connections wait for one.
"""

from __future__ import annotations

import contextlib
import queue
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from appliance.base.units import KIB, MIB
from appliance.blocks.device import check_range
from appliance.blocks.extents import ExtentKind, MappedExtent
from appliance.sources.errors import NbdError
from appliance.sources.nbd_protocol import (
    BLOCK_STATUS,
    CHUNK_DATA,
    CHUNK_DONE,
    CHUNK_ERROR,
    CHUNK_HOLE,
    CHUNK_MAGIC,
    CHUNK_NONE,
    CHUNK_REST,
    CHUNK_START,
    CHUNK_STATUS,
    DISCONNECT,
    FLAG_READ_ONLY,
    FLAG_ZEROES,
    FLUSH,
    PAYLOAD_LIMIT_BYTES,
    READ,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_MAGIC,
    SIMPLE_REPLY,
    STATE_ZERO,
    WRITE,
    WRITE_ZEROES,
    Export,
    handshake,
    receive,
    receive_into,
)

_REQUEST_BYTES = 256 * KIB  # larger ones starve the four threads of qemu that decompress qcow2
_IN_FLIGHT = 16  # qemu-nbd answers at most 16 requests of a client at once
_STATUS_MOST_BYTES = 2 << 30  # a block status request carries 32 bits of length
_STATUS_LIMIT_BYTES = 8 * MIB + 4  # 2**20 extents
_ERROR_LIMIT_BYTES = 8 * KIB
_VECTOR = 512  # buffers per sendmsg; the system's limit is 1024
_ANSWER_WITHIN_S = 120
_ZEROS = memoryview(bytes(MIB))
_U64 = Struct(">Q")
_HOLE = Struct(">QI")
_STATE = Struct(">II")


@dataclass(slots=True)
class _Pending:
    """A request in flight: where its payload goes, and how much has come."""

    offset: int
    buffer: memoryview
    done_bytes: int = 0


class NbdConnection:
    """One connection; belongs to one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes the connected socket over, and closes it when the handshake fails."""
        self._sock = sock
        self._cookie = 0
        self.alive = True
        timeout = Struct("@ll").pack(_ANSWER_WITHIN_S, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        try:
            self.export: Export = handshake(sock)
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        self.alive = False
        self._sock.close()

    def disconnect(self) -> None:
        if self.alive:
            with contextlib.suppress(NbdError):
                self._send(DISCONNECT, 0, 0)
            self.drop()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        pending: dict[int, _Pending] = {}
        failed: NbdError | None = None
        sent = 0
        while pending or sent < len(buffer):
            while sent < len(buffer) and len(pending) < _IN_FLIGHT:
                part = buffer[sent : sent + _REQUEST_BYTES]
                cookie = self._send(READ, offset + sent, len(part))
                pending[cookie] = _Pending(offset + sent, part)
                sent += len(part)
            failed = self._take_read_chunk(pending) or failed
        if failed is not None:
            raise failed

    def block_status(self, offset: int, length: int) -> list[MappedExtent]:
        cookie = self._send(BLOCK_STATUS, offset, length)
        mapped: list[MappedExtent] = []
        failed: NbdError | None = None
        done = False
        while not done:
            kind, done, size = self._chunk_head(cookie)
            if kind & CHUNK_ERROR:
                failed = self._error(size)
            elif kind == CHUNK_STATUS and 12 <= size <= _STATUS_LIMIT_BYTES and size % 8 == 4:
                mapped = self._states(receive(self._sock, size), offset, length)
            elif kind != CHUNK_NONE or size:
                raise NbdError(f"unexpected NBD chunk {kind} of {size} bytes")
        if failed is not None:
            raise failed
        return mapped

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """At most PAYLOAD_LIMIT_BYTES in all."""
        length = sum(map(len, buffers))
        self._finish(self._send(WRITE, offset, length, buffers))

    def zero(self, offset: int, length: int) -> None:
        self._finish(self._send(WRITE_ZEROES, offset, length))

    def flush(self) -> None:
        self._finish(self._send(FLUSH, 0, 0))

    def _send(
        self, kind: int, offset: int, length: int, payload: Sequence[bytes | memoryview] = ()
    ) -> int:
        if not self.alive:
            raise NbdError("the NBD connection was lost")
        self._cookie += 1
        head = REQUEST.pack(REQUEST_MAGIC, 0, kind, self._cookie, offset, length)
        views = [memoryview(part) for part in (head, *payload) if part]
        try:
            while views:
                sent = self._sock.sendmsg(views[:_VECTOR])
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except OSError as error:
            raise NbdError(f"NBD connection: {error.strerror}") from error
        return self._cookie

    def _finish(self, cookie: int) -> None:
        """Take the reply of a request that has no payload in its answer."""
        failed: NbdError | None = None
        done = False
        while not done:
            kind, done, size = self._chunk_head(cookie)
            if kind & CHUNK_ERROR:
                failed = self._error(size)
            elif kind != CHUNK_NONE or size:
                raise NbdError(f"unexpected NBD chunk {kind} of {size} bytes")
        if failed is not None:
            raise failed

    def _chunk_head(self, asked: int) -> tuple[int, bool, int]:
        """Return (type, whether it is the last, payload length) of a chunk for cookie `asked`."""
        cookie, kind, last, length = self._reply_head()
        if cookie != asked:
            raise NbdError("an NBD reply to nothing that was asked")
        return kind, last, length

    def _reply_head(self) -> tuple[int, int, bool, int]:
        """Return (cookie, type, whether it is the last, length); a simple reply is one chunk.

        A simple error reply is raised: only requests sent one at a time get simple replies.
        """
        start = receive(self._sock, CHUNK_START.size)
        magic, flags, kind, cookie = CHUNK_START.unpack(start)
        if magic == SIMPLE_MAGIC:
            _, number, cookie = SIMPLE_REPLY.unpack(start)
            if number:
                raise NbdError(f"the NBD server failed with error {number}", number)
            return cookie, CHUNK_NONE, True, 0
        if magic != CHUNK_MAGIC:
            raise NbdError("malformed NBD reply")
        length = CHUNK_REST.unpack(receive(self._sock, CHUNK_REST.size))[0]
        return cookie, kind, bool(flags & CHUNK_DONE), length

    def _take_read_chunk(self, pending: dict[int, _Pending]) -> NbdError | None:
        """Take one chunk of any read in flight; return the error that it reports."""
        cookie, kind, last, length = self._reply_head()
        request = pending.get(cookie)
        if request is None:
            raise NbdError("an NBD reply to nothing that was asked")
        failed = None
        if kind == CHUNK_DATA and 8 < length <= 8 + len(request.buffer):
            at = _U64.unpack(receive(self._sock, 8))[0] - request.offset
            receive_into(self._sock, _inside(request, at, length - 8))
        elif kind == CHUNK_HOLE and length == _HOLE.size:
            start, size = _HOLE.unpack(receive(self._sock, length))
            _clear(_inside(request, start - request.offset, size))
        elif kind & CHUNK_ERROR:
            failed = self._error(length)
            request.done_bytes = len(request.buffer)
        elif kind != CHUNK_NONE or length:
            raise NbdError(f"unexpected NBD chunk {kind} of {length} bytes")
        if last:
            del pending[cookie]
            if request.done_bytes != len(request.buffer):
                raise NbdError("the NBD server left a part of a read out")
        return failed

    def _error(self, length: int) -> NbdError:
        if not 6 <= length <= _ERROR_LIMIT_BYTES:
            raise NbdError(f"malformed NBD error of {length} bytes")
        payload = bytes(receive(self._sock, length))
        number = int.from_bytes(payload[:4], "big")
        text = payload[6 : 6 + int.from_bytes(payload[4:6], "big")].decode(errors="replace")
        return NbdError(f"the NBD server failed with error {number}: {text}", number)

    def _states(self, payload: bytearray, offset: int, length: int) -> list[MappedExtent]:
        mapped: list[MappedExtent] = []
        end = offset + length
        for size, state in _STATE.iter_unpack(memoryview(payload)[4:]):
            if not size:
                raise NbdError("an NBD extent without length")
            size = min(size, end - offset)  # the last one may run past the request
            if not size:
                break
            kind = ExtentKind.ZERO if state & STATE_ZERO else ExtentKind.DATA
            if mapped and mapped[-1].kind is kind:
                before = mapped.pop()
                mapped.append(MappedExtent(before.offset, before.length + size, kind))
            else:
                mapped.append(MappedExtent(offset, size, kind))
            offset += size
        return mapped


def _inside(request: _Pending, at: int, length: int) -> memoryview:
    """Return the part of the request's buffer that a chunk fills, and count it."""
    if at < 0 or not 0 < length <= len(request.buffer) - at:
        raise NbdError("an NBD chunk outside of its request")
    request.done_bytes += length
    return request.buffer[at : at + length]


def _clear(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROS)):
        part = view[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]


class NbdDevice:
    """A `BlockDevice` over several connections to one export."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        """Takes the connected sockets over. Raises NbdError: a handshake failed; all are closed."""
        self._connections: list[NbdConnection] = []
        try:
            for sock in sockets:
                self._connections.append(NbdConnection(sock))
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        self._export = self._connections[0].export
        self._free: queue.LifoQueue[NbdConnection] = queue.LifoQueue()
        for connection in self._connections:
            self._free.put(connection)

    @property
    def size_bytes(self) -> int:
        return self._export.size_bytes

    @property
    def read_only(self) -> bool:
        return bool(self._export.flags & FLAG_READ_ONLY)

    def close(self) -> None:
        """Say goodbye on every connection; no call may be under way."""
        for connection in self._connections:
            connection.disconnect()

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size_bytes)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        with self._connection() as connection:
            connection.read_into(offset, buffer)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self.size_bytes)
        return None if length else b""  # the server may wait for a disk

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self.size_bytes)
        if not length:
            return []
        if self._export.context_id is None:
            return [MappedExtent(offset, length, ExtentKind.DATA)]
        with self._connection() as connection:
            return connection.block_status(offset, min(length, _STATUS_MOST_BYTES))

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        check_range(offset, len(data), self.size_bytes)
        view = memoryview(data)
        for start in range(0, len(view), PAYLOAD_LIMIT_BYTES):
            self.write_vector(offset + start, [view[start : start + PAYLOAD_LIMIT_BYTES]])

    def write_vector(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write the buffers one after another with one request: at most 32 MiB in all."""
        length = sum(map(len, buffers))
        check_range(offset, length, self.size_bytes)
        if length > PAYLOAD_LIMIT_BYTES:
            raise ValueError(f"{length} bytes in one NBD request")
        if length:
            with self._connection() as connection:
                connection.write(offset, buffers)

    def zero_at(self, offset: int, length: int) -> None:
        check_range(offset, length, self.size_bytes)
        end = offset + length
        while offset < end:
            if self._export.flags & FLAG_ZEROES:
                size = min(end - offset, _STATUS_MOST_BYTES)
                with self._connection() as connection:
                    connection.zero(offset, size)
            else:
                size = min(end - offset, len(_ZEROS))
                self.write_at(offset, _ZEROS[:size])
            offset += size

    def flush(self) -> None:
        with self._connection() as connection:
            connection.flush()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[NbdConnection]:
        connection = self._free.get()
        in_step = False
        try:
            yield connection
            in_step = True
        except NbdError as error:
            in_step = error.number != 0
            raise
        finally:
            if not in_step:  # what follows on the wire is unknown
                connection.drop()
            self._free.put(connection)
