"""What goes out of a connection and whether more may come in: both ends of its back-pressure.

Replies are collected and leave in one call. Reading is paused while the connection has taken on
its share, and when the transport says that the client does not keep up with its replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nbd_server.backend import Buffer


class Flow:
    def __init__(
        self,
        transport: asyncio.Transport,
        turn: Callable[[], None],
        *,
        answered: Callable[[], None],
        linger_s: float,
    ) -> None:
        """`turn` is called when `next_turn` said so, `answered` whenever replies have left;
        `linger_s` is the client's time at the end."""
        self._transport = transport
        self._turn = turn
        self._answered = answered
        self._linger_s = linger_s
        self._loop = asyncio.get_running_loop()
        self._turn_scheduled = False
        self._linger: asyncio.TimerHandle | None = None
        self.replies: list[Buffer] = []
        self.writing_paused = False
        self.reading_paused = False
        self.lost = False

    @property
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    @property
    def closing(self) -> bool:
        return self._linger is not None

    def send(self) -> None:
        if self.replies and not self.lost:
            self._transport.writelines(self.replies)
            self._answered()
        self.replies.clear()

    def set_reading(self, wanted: bool) -> None:
        if wanted and self.reading_paused:
            self.reading_paused = False
            self._transport.resume_reading()
        elif not wanted and not self.reading_paused:
            self.reading_paused = True
            self._transport.pause_reading()

    def next_turn(self, delay_s: float) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_later(delay_s, self._take_turn)

    def close(self) -> None:
        """Close once what is unsent was taken, or the client's time is over. Idempotent."""
        if self.lost or self._linger is not None:
            return
        self._linger = self._loop.call_later(self._linger_s, self._transport.abort)
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def connection_lost(self) -> None:
        self.lost = True
        self.replies.clear()
        if self._linger is not None:
            self._linger.cancel()

    def _take_turn(self) -> None:
        self._turn_scheduled = False
        self._turn()
