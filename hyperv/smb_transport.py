"""The TCP connection under smbprotocol, which takes the answers to our reads out of its stream.

Data path: socket -> here -> the caller's buffer, for reads of `smb_reads`; every other message goes
to smbprotocol, whose receiving thread calls `recv`. The data of a read is received where it belongs
and checked or unsealed there.

Invariants: after the login, every message that comes in is sealed where the session is, else signed
(but for the interim one, which says only "later"); one that is not ends the connection. A read is
finished only after its signature or seal was found to be right. Nothing is written to a caller's
buffer after its read has ended, however it ended. A message's size is bounded before room is made.

Thread model: `recv` is called by one thread; the rest by any. Source: [MS-SMB2] 2.1, 3.2.5.1.
"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from typing import Any, Final, Protocol

from smbprotocol.exceptions import SMBConnectionClosed, SMBException

from hyperv.errors import UnprotectedError
from hyperv.smb_messages import (
    FLAG_SIGNED,
    HEADER_BYTES,
    PLAIN,
    READ,
    READ_HEAD_BYTES,
    SEAL_BYTES,
    SEALED,
    STATUS_PENDING,
    Header,
    parse_header,
    read_data_place,
)
from hyperv.smb_protection import Opening, SmbProtection

MOST_MESSAGE_BYTES: Final = (16 << 20) - 1  # what the framing allows
_FIRST_BYTES = 8  # the length, and which kind of message it is


class Answered(Protocol):
    """Who waits for reads."""

    def buffer_of(self, message_id: int) -> memoryview | None:
        """Where the data of a read belongs, whole; None: it is no read that is under way."""
        ...

    def credit(self, header: Header) -> None: ...

    def finished(self, message_id: int) -> None: ...

    def refused(self, message_id: int, status: int, length: int) -> None:
        """It failed with `status`, or (0) gave only `length` bytes."""
        ...

    def broken(self, kind: type[Exception], text: str) -> None:
        """No further answer will come."""
        ...


class SmbTransport:
    """Stands in the place of smbprotocol's `Tcp`, which it keeps using."""

    def __init__(
        self, tcp: Any, protection: SmbProtection, answered: Answered, *, is_sealed: bool
    ) -> None:
        """`is_sealed`: the whole session is."""
        self._tcp = tcp
        self._protection = protection
        self._answered = answered
        self._is_sealed = is_sealed
        self._filling = threading.RLock()  # a buffer of a caller is being written to

    # What smbprotocol calls

    @property
    def connected(self) -> bool:
        return bool(self._tcp.connected)

    def send(self, message: Any) -> None:
        """A message of smbprotocol: bytes, or a structure of its own."""
        self._tcp.send(message)

    def recv(self, timeout: float) -> bytes:
        """The next message that is not ours; b"": the connection has ended.

        Raises:
            TimeoutError: nothing came for `timeout` seconds.
            UnprotectedError, SMBException: what came cannot be trusted, or is no SMB.
        """
        try:
            while True:
                first = self._first(timeout)
                if first is None:
                    return b""
                message = self._message(first)
                if message is not None:
                    return message
        except (UnprotectedError, SMBException) as error:
            self.end(type(error), str(error))
            raise

    def close(self) -> None:
        """Idempotent; reads under way fail."""
        self.end(SMBConnectionClosed, "the connection has ended")

    # What `smb_reads` calls

    def send_all(self, messages: list[bytes]) -> None:
        """Raises: OSError, SMBConnectionClosed."""
        framed = b"".join(len(each).to_bytes(4, "big") + each for each in messages)
        with self._tcp._sock_lock:
            if not self._tcp.connected:
                raise SMBConnectionClosed("the connection has ended")
            self._tcp._sock.sendall(framed)

    def end(self, kind: type[Exception], text: str) -> None:
        """Close; reads under way fail with `kind`, once nothing writes to their buffers."""
        with suppress(OSError):
            self._tcp.close()
        with self._filling:
            self._answered.broken(kind, text)

    # The receiving thread

    def _first(self, timeout: float) -> bytes | None:
        with self._tcp._close_lock:
            if not self._tcp.connected:
                return None
            poll = select.poll()
            poll.register(self._tcp._sock, select.POLLIN)
            if not poll.poll(max(timeout, 1) * 1000):
                raise TimeoutError(f"nothing came for {timeout:.0f} s")
        return self._taken(_FIRST_BYTES)

    def _message(self, first: bytes) -> bytes | None:
        """Take one in; b"": the connection has ended, None: it was ours."""
        length, kind = int.from_bytes(first[:4], "big"), first[4:]
        if kind not in (PLAIN, SEALED) or not HEADER_BYTES <= length <= MOST_MESSAGE_BYTES:
            raise SMBException(f"the host sent a message of {length} bytes that is no SMB 3")
        head_bytes = READ_HEAD_BYTES + (SEAL_BYTES if kind == SEALED else 0)
        rest_of_head = self._taken(min(length, head_bytes) - len(kind))
        if rest_of_head is None:
            return b""
        head = kind + rest_of_head
        if kind == PLAIN:
            return self._plain(head, length)
        return self._sealed(head, length)

    def _plain(self, head: bytes, length: int) -> bytes | None:
        header = parse_header(head)
        is_interim = header.status == STATUS_PENDING
        if self._is_sealed:
            raise UnprotectedError("an answer came without its seal")
        if not is_interim and not header.flags & FLAG_SIGNED:
            raise UnprotectedError("an answer came without a signature")
        with self._filling:
            buffer = self._direct(header, head, length)
            if buffer is not None:
                if not self._fill(buffer):
                    return b""
                self._protection.check_signature(header.message_id, head, buffer)
                self._finished(header)
                return None
        rest = self._taken(length - len(head))
        if rest is None:
            return b""
        message = head + rest
        if not self._is_ours(header):
            return message  # smbprotocol checks what says that it is signed
        if not is_interim:
            self._protection.check_signature(header.message_id, message, b"")
        self._odd(header, message)
        return None

    def _sealed(self, head: bytes, length: int) -> bytes | None:
        seal, inner = head[:SEAL_BYTES], head[SEAL_BYTES:]
        opening = self._protection.opening(seal)
        if opening is not None and len(inner) == READ_HEAD_BYTES:
            done = self._unsealed(opening, inner, length - SEAL_BYTES)
            if done is not None:
                return None if done else b""
        rest = self._taken(length - len(head))
        if rest is None:
            return b""
        message = self._protection.opened(seal, inner + rest)
        header = parse_header(message)
        if not self._is_ours(header):
            return head + rest  # smbprotocol opens it again
        self._odd(header, message)
        return None

    def _unsealed(self, opening: Opening, inner: bytes, length: int) -> bool | None:
        """Unseal the data of a read in its buffer; None: it is something else, False: it ended."""
        plain = opening.next(inner)
        header = parse_header(plain)
        with self._filling:
            buffer = self._direct(header, plain, length)
            if buffer is None:
                return None
            if not self._fill(buffer):
                return False
            opening.in_place(buffer)
            opening.finish()
            self._finished(header)
            return True

    def _direct(self, header: Header, head: bytes, length: int) -> memoryview | None:
        """The buffer of a read that was answered in full, the data at its usual place."""
        if header.command != READ or header.status or header.next_command:
            return None
        buffer = self._answered.buffer_of(header.message_id)
        if buffer is None or length != READ_HEAD_BYTES + len(buffer):
            return None
        return buffer if read_data_place(head) == (READ_HEAD_BYTES, len(buffer)) else None

    def _is_ours(self, header: Header) -> bool:
        return header.command == READ and self._answered.buffer_of(header.message_id) is not None

    def _odd(self, header: Header, message: bytes) -> None:
        """A read of ours: refused, answered later, too short, or with its data elsewhere."""
        if header.status == STATUS_PENDING:
            self._answered.credit(header)
            return
        offset, length = 0, 0
        if not header.status and len(message) >= READ_HEAD_BYTES:
            offset, length = read_data_place(message)
        with self._filling:
            buffer = self._answered.buffer_of(header.message_id)
            is_whole = buffer is not None and length == len(buffer)
            if is_whole and buffer is not None and HEADER_BYTES < offset <= len(message) - length:
                buffer[:] = message[offset : offset + length]
                self._finished(header)
                return
        self._answered.credit(header)
        self._answered.refused(header.message_id, header.status, length)

    def _finished(self, header: Header) -> None:
        self._answered.credit(header)
        self._answered.finished(header.message_id)

    # The socket

    def _taken(self, length: int) -> bytes | None:
        room = bytearray(length)
        return bytes(room) if self._fill(memoryview(room)) else None

    def _fill(self, view: memoryview) -> bool:
        """Receive all of it; False: the connection has ended."""
        while view:
            with self._tcp._close_lock:  # closing waits until nobody is in here
                if not self._tcp.connected:
                    return False
                try:
                    got = self._tcp._sock.recv_into(view, 0, socket.MSG_WAITALL)
                except OSError:
                    got = 0
            if not got:
                self.end(SMBConnectionClosed, "the host has ended the connection")
                return False
            view = view[got:]
        return True
