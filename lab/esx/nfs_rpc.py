"""ONC RPC over one TCP connection, as an NFS mount of an ESXi host has it.

Any number of calls may be under way; a thread reads the replies. When the connection is lost, it is
made again and what has no reply is sent again with the same xid, until each call's own time is up:
so a server may be killed and started again, and must recognise what it has executed already.
Invariants: a record is at most `RECORD_BYTES_MAX` long; a reply to no call is dropped (a late one).
Thread model: any thread; `close` fails what is under way and joins the thread.
Source: RFC 5531; design notes on exports, B.1.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import threading
import time

from lab.esx.errors import FileFaultError
from lab.esx.nfs_xdr import NfsProtocolError, Reader, opaque, u32

RECORD_BYTES_MAX = (1 << 20) + 4096
_CONNECT_S = 5.0
_RETRY_S = 0.1
_LAST_FRAGMENT = 1 << 31
_ACCEPT = ("", "PROG_UNAVAIL", "PROG_MISMATCH", "PROC_UNAVAIL", "GARBAGE_ARGS", "SYSTEM_ERR")


class NfsUnreachableError(FileFaultError):
    """The server does not answer."""


class NfsRefusedError(FileFaultError):
    """The server's RPC layer refused the call."""


class _Slot:
    """A call under way."""

    def __init__(self, record: bytes) -> None:
        self.record = record
        self.reply: bytes | None = None


class RpcConnection:
    """`source` is the address to call from; empty for what the system chooses."""

    def __init__(self, address: str, port: int, *, source: str = "") -> None:
        """Connect. Raises NfsUnreachableError."""
        self.address = address
        self.port = port
        self._source = source
        self._xids = itertools.count(secrets.randbits(31))
        self._credentials = _auth_sys()
        self._state = threading.Condition()
        self._send_lock = threading.Lock()
        self._slots: dict[int, _Slot] = {}
        self._closed = False
        self._socket: socket.socket | None = self._connect()
        self._thread = threading.Thread(target=self._run, name="lab-nfs", daemon=True)
        self._thread.start()

    def call(
        self, program: int, version: int, procedure: int, arguments: bytes, *, timeout_s: float
    ) -> Reader:
        """Return the result's body.

        Raises:
            NfsUnreachableError: no reply in `timeout_s`, or the connection was closed.
            NfsRefusedError: the call was denied.
        """
        xid = next(self._xids) & 0xFFFF_FFFF
        header = u32(xid, 0, 2, program, version, procedure)
        body = b"".join((header, self._credentials, arguments))
        slot = _Slot(u32(_LAST_FRAGMENT | len(body)) + body)
        with self._state:
            self._slots[xid] = slot
            connection = self._socket
        try:
            if connection is not None:
                self._send(connection, slot.record)
            with self._state:
                self._state.wait_for(lambda: slot.reply is not None or self._closed, timeout_s)
        finally:
            with self._state:
                self._slots.pop(xid, None)
        if slot.reply is None:
            raise NfsUnreachableError(f"{self.address}:{self.port} does not answer")
        return _accepted(slot.reply)

    def close(self) -> None:
        """Idempotent."""
        with self._state:
            self._closed = True
            self._state.notify_all()
            connection = self._socket
        if connection is not None:
            _shut(connection)
        self._thread.join()

    def _connect(self) -> socket.socket:
        source = (self._source, 0) if self._source else None
        try:
            connection = socket.create_connection(
                (self.address, self.port), timeout=_CONNECT_S, source_address=source
            )
        except OSError as error:
            raise NfsUnreachableError(
                f"cannot connect to {self.address}:{self.port}: {error}"
            ) from error
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _send(self, connection: socket.socket, record: bytes) -> None:
        with self._send_lock, contextlib.suppress(OSError):  # lost: sent again after reconnecting
            connection.sendall(record)

    def _run(self) -> None:
        connection: socket.socket | None = self._socket
        while connection is not None:
            with contextlib.suppress(OSError, NfsProtocolError):
                while (record := _read_record(connection)) is not None:
                    self._deliver(record)
            with self._state:
                self._socket = None
            connection.close()
            connection = self._reconnect()

    def _reconnect(self) -> socket.socket | None:
        """A new connection with everything sent again; None when closed."""
        while True:
            with self._state:
                if self._state.wait_for(lambda: self._closed, _RETRY_S):
                    return None
            try:
                connection = self._connect()
            except NfsUnreachableError:
                continue
            with self._state:
                if self._closed:
                    connection.close()
                    return None
                self._socket = connection
                waiting = [slot.record for slot in self._slots.values() if slot.reply is None]
            for record in waiting:
                self._send(connection, record)
            return connection

    def _deliver(self, record: bytes) -> None:
        with self._state:
            slot = self._slots.get(int.from_bytes(record[:4], "big"))
            if slot is not None:
                slot.reply = record
                self._state.notify_all()


def call_once(
    address: str,
    port: int,
    program: int,
    version: int,
    procedure: int,
    arguments: bytes,
    *,
    source: str = "",
    timeout_s: float = _CONNECT_S,
) -> Reader:
    """One call on a connection of its own."""
    with contextlib.closing(RpcConnection(address, port, source=source)) as connection:
        return connection.call(program, version, procedure, arguments, timeout_s=timeout_s)


def _auth_sys() -> bytes:
    """Uid 0 and gid 0, and an empty verifier."""
    machine = socket.gethostname().encode()[:255]
    body = b"".join((u32(int(time.time()) & 0xFFFF_FFFF), opaque(machine), u32(0, 0, 0)))
    return u32(1) + opaque(body) + u32(0, 0)


def _accepted(record: bytes) -> Reader:
    reader = Reader(record)
    reader.u32()
    if reader.u32() != 1:
        raise NfsProtocolError("a reply that is a call")
    if reader.u32() != 0:
        kind = "RPC_MISMATCH" if reader.u32() == 0 else "AUTH_ERROR"
        raise NfsRefusedError(f"the call was denied: {kind}")
    reader.u32()
    reader.opaque(400)
    status = reader.u32()
    if status:
        name = _ACCEPT[status] if status < len(_ACCEPT) else str(status)
        raise NfsRefusedError(f"the call was refused: {name}")
    return reader


def _read_record(connection: socket.socket) -> bytes | None:
    """None at the connection's end. Raises OSError, NfsProtocolError."""
    fragments = []
    size = 0
    while True:
        mark = _read_exactly(connection, 4)
        if mark is None:
            return None
        word = int.from_bytes(mark, "big")
        size += word & ~_LAST_FRAGMENT
        if size > RECORD_BYTES_MAX:
            raise NfsProtocolError(f"a record of {size} bytes")
        fragment = _read_exactly(connection, word & ~_LAST_FRAGMENT)
        if fragment is None:
            return None
        fragments.append(fragment)
        if word & _LAST_FRAGMENT:
            return b"".join(fragments)


def _read_exactly(connection: socket.socket, length: int) -> bytes | None:
    buffer = bytearray(length)
    view, at = memoryview(buffer), 0
    while at < length:
        count = connection.recv_into(view[at:])
        if not count:
            return None
        at += count
    return bytes(buffer)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
