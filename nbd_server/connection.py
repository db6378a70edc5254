"""One client: the asyncio protocol that feeds the negotiation and then the transmission phase.

Phases: greeting and options (`Handshake`), perhaps once more inside TLS, then `Transmission`. A
client that has not finished the negotiation by the deadline, or asks for too many options, is cut
off. Everything runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import cast

from nbd_server import protocol
from nbd_server.backend import Exports
from nbd_server.errors import ProtocolError
from nbd_server.handshake import GREETING, Answer, Handshake, Next, TlsMode
from nbd_server.limits import Limits
from nbd_server.protocol import OPTION_MAGIC
from nbd_server.receive import ReceiveBuffer
from nbd_server.tls import TlsPolicy
from nbd_server.transmission import Transmission
from nbd_server.work_queue import Surroundings

log = logging.getLogger(__name__)

HIGH_WATER_BYTES = 1 << 20  # of unsent replies; below Limits.MIN_SHARE_BYTES
LOW_WATER_BYTES = 256 << 10
TLS_GOODBYE_S = 1.0  # for the peer's close_notify, which many never send


class Connection(asyncio.BufferedProtocol):
    def __init__(
        self,
        exports: Exports,
        tls: TlsPolicy | None,
        limits: Limits,
        shared: Surroundings,
        *,
        opened: Callable[[Connection], bool],
        on_lost: Callable[[Connection], None],
    ) -> None:
        """`opened`: whether it may stay; it is cut off otherwise."""
        self._handshake = Handshake(exports, tls.mode if tls else TlsMode.OFF)
        self._tls = tls
        self._limits = limits
        self._shared = shared
        self._opened = opened
        self._on_lost = on_lost
        self._received = ReceiveBuffer()
        self._greeted = False
        self._options = 0
        self._oversized: tuple[int, int] | None = None  # option, bytes of it still to come
        self._writing_paused = False
        self._closed = False
        self._secure = False
        self._transmission: Transmission | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._upgrade: asyncio.Task[None] | None = None
        self.client = ""  # its address; a Unix socket has none

    # called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        self._use(cast(asyncio.Transport, transport))  # uvloop's do not inherit from it
        if not self._opened(self):
            self.abort()
            return
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._limits.handshake_s, self._too_slow)
        self._transport.write(GREETING)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._transmission is not None:
            return self._transmission.room()
        return self._received.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._transmission is not None:
            self._transmission.arrived(nbytes)
            return
        self._received.end += nbytes
        self._negotiate()

    def eof_received(self) -> bool:
        """A client may stop sending and still wait for replies."""
        if self._transmission is None:
            return False
        self._transmission.drain()
        return not self._secure  # the transmission closes the transport; TLS has no half-close

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._transmission is not None:
            self._transmission.writing_paused()
        else:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._transmission is not None:
            self._transmission.writing_resumed()
        else:
            self._transport.resume_reading()
            self._negotiate()

    def connection_lost(self, error: Exception | None) -> None:
        if self._closed:
            return
        self._closed = True
        self._cancel_deadline()
        if self._transmission is not None:
            self._transmission.lost()
        self._on_lost(self)

    # called by the server

    def drain(self) -> None:
        """Finish what the client asked for, then close."""
        if self._transmission is not None:
            self._transmission.drain()
        else:
            self.abort()

    def abort(self) -> None:
        if self._upgrade is not None:
            self._upgrade.cancel()
        self._transport.abort()

    # negotiation

    def _use(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES, low=LOW_WATER_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # dead peers make room

    def _negotiate(self) -> None:
        """Answer the options that are complete, unless the client does not take the answers."""
        try:
            while not (self._writing_paused or self._transport.is_closing()):
                answer = self._next_answer()
                if answer is None:
                    return
                if answer.reply:
                    self._transport.write(answer.reply)
                if answer.next is not Next.OPTION:
                    self._leave_options(answer)
                    return
        except ProtocolError as error:
            log.info("negotiation broken off: %s", error)
            self._transport.abort()

    def _next_answer(self) -> Answer | None:
        """Return the answer to the next whole option, or None to wait for more bytes."""
        received = self._received
        if not self._greeted:
            if len(received) < protocol.CLIENT_FLAGS.size:
                return None
            (flags,) = protocol.CLIENT_FLAGS.unpack(received.take(protocol.CLIENT_FLAGS.size))
            self._handshake.client_flags(flags)
            self._greeted = True
        if self._oversized is not None:
            return self._skip_oversized(*self._oversized)
        if len(received) < protocol.OPTION_HEADER.size:
            return None
        magic, option, length = protocol.OPTION_HEADER.unpack_from(received.data, received.start)
        if magic != OPTION_MAGIC:
            raise ProtocolError(f"option magic {magic:#018x}")
        if length > self._limits.option_bytes:
            received.drop(protocol.OPTION_HEADER.size)
            self._count_option()
            return self._skip_oversized(option, length)
        if len(received) < protocol.OPTION_HEADER.size + length:
            return None
        received.drop(protocol.OPTION_HEADER.size)
        self._count_option()
        return self._handshake.option(option, received.take(length))

    def _skip_oversized(self, option: int, left: int) -> Answer | None:
        left -= self._received.drop(left)
        self._oversized = (option, left) if left else None
        return None if left else self._handshake.too_big(option)

    def _count_option(self) -> None:
        self._options += 1
        if self._options > self._limits.options:
            raise ProtocolError(f"more than {self._limits.options} options")

    def _leave_options(self, answer: Answer) -> None:
        if answer.next is Next.START_TLS:
            self._start_tls()
        elif answer.session is not None:
            self._cancel_deadline()
            self._transmission = Transmission(
                answer.session, self._transport, self._received, self._shared
            )
            if self._writing_paused:
                self._transmission.writing_paused()
            self._transmission.process()
        else:
            self._transport.close()

    def _start_tls(self) -> None:
        """Bytes that came in clear before TLS was up may be injected: they end the connection."""
        if len(self._received):
            raise ProtocolError("data behind STARTTLS")
        self._transport.pause_reading()
        self._upgrade = asyncio.get_running_loop().create_task(self._upgraded())

    async def _upgraded(self) -> None:
        assert self._tls is not None
        loop = asyncio.get_running_loop()
        transport: asyncio.Transport | None = None
        try:
            transport = await loop.start_tls(
                self._transport,
                self,
                self._tls.context,
                server_side=True,
                ssl_handshake_timeout=self._limits.handshake_s,
                ssl_shutdown_timeout=TLS_GOODBYE_S,
            )
        except (OSError, ssl.SSLError) as error:
            log.info("TLS handshake failed: %s", error)
        finally:
            if transport is None:  # nobody else reports the loss of a half-made TLS connection
                self._transport.abort()
                self.connection_lost(None)
        if transport is None or self._closed:
            return
        self._handshake.secured()
        self._secure = True
        self._use(transport)

    def _too_slow(self) -> None:
        log.info("negotiation not finished in %s s", self._limits.handshake_s)
        self.abort()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
