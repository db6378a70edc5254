"""Byte ranges of one datastore file, over a few connections, through whatever breaks on the way.

Data path: `ReadWindow` and single reads -> here -> `http_range` -> socket. A range that breaks half
way goes on where it broke; a route that does not come back is left for the next one, for good.

Invariants: at most `connections` at once; retries are bounded per range, and only counted as new
tries when bytes came in between; a failure that waiting does not cure is raised at once.
Thread model: `fetch` from any number of threads; `close` from any, waking the others.
"""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vmware.datastore_path import DatastorePath
from vmware.errors import (
    CancelledError,
    PrivilegeError,
    SessionLostError,
    VsphereError,
)
from vmware.transports.datastore_routes import Opened, Route
from vmware.transports.http_range import NoAnswerError, OnProgress, content_length, get_range

log = logging.getLogger(__name__)

Exchange = Callable[[Opened], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    pauses_s: tuple[float, ...] = (0.2, 1.0, 3.0, 10.0)  # before each further try without progress
    failures: int = 20  # of one range, whatever came in between

    def pause_s(self, fruitless: int, failures: int) -> float | None:
        """How long to wait after that many failures; None: no more."""
        if fruitless > len(self.pauses_s) or failures > self.failures:
            return None
        return self.pauses_s[fruitless - 1]


class RangeClient:
    """Args:
    file_bytes: what the file must measure.
    routes: best first for large ranges; at most one of them keeps connections.
    small_bytes: ranges below it take that one: a ticket and a handshake would cost more than them.
    """

    def __init__(
        self,
        file: DatastorePath,
        file_bytes: int,
        routes: Sequence[Route],
        *,
        connections: int,
        retry: RetryPolicy,
        small_bytes: int = 0,
    ) -> None:
        self._file = file
        self._file_bytes = file_bytes
        self._routes = list(routes)
        self._retry = retry
        self._small_bytes = small_bytes
        self._slots = threading.BoundedSemaphore(connections)
        self._lock = threading.Lock()  # routes, idle, busy
        self._idle: list[http.client.HTTPSConnection] = []  # of the route that keeps them
        self._busy: set[socket.socket] = set()
        self._closed = threading.Event()

    @property
    def route(self) -> Route:
        """The one in use for large ranges."""
        return self._routes[0]

    def _route_for(self, length: int) -> Route:
        routes = list(self._routes)
        if length < self._small_bytes:
            routes.sort(key=lambda route: not route.keeps_connections)
        return routes[0]

    def size_bytes(self) -> int:
        """The file's size as the server tells it. Raises: as `fetch`."""
        found: list[int] = []

        def head(opened: Opened) -> None:
            found.append(content_length(opened.connection, opened.target, opened.headers))

        self._persist(0, lambda route: self._once(route, "HEAD", head), lambda: 0)
        return found[0]

    def fetch(self, offset: int, buffer: memoryview, on_progress: OnProgress) -> None:
        """Fill `buffer` with the file's bytes from `offset`.

        Args:
            on_progress: told how many bytes of `buffer` are valid, ascending.

        Raises:
            TransportError, UnreachableError: it did not come in spite of retries on every route.
            PrivilegeError: the account may not read datastore files.
            VsphereError: what waiting does not cure.
            CancelledError: `close` was called.
        """
        done = 0

        def get(opened: Opened) -> None:
            start = done

            def progressed(count: int) -> None:
                nonlocal done
                done = start + count
                on_progress(done)

            get_range(
                opened.connection,
                opened.target,
                opened.headers,
                offset + start,
                buffer[start:],
                self._file_bytes,
                progressed,
            )

        if buffer:
            self._persist(len(buffer), lambda route: self._once(route, "GET", get), lambda: done)

    def close(self) -> None:
        """End every request under way, which then fails; idempotent."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for connection in idle:
            connection.close()
        for sock in busy:  # wakes the thread that reads; it closes the connection
            with suppress(OSError):
                # Not SSLSocket's: that would go on to read ciphertext as if it were the answer.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _persist(
        self, length: int, attempt: Callable[[Route], None], progress: Callable[[], int]
    ) -> None:
        """Try until it works, on one route after the other, within the bounds of the policy."""
        failures = fruitless = 0
        while True:
            route, before = self._route_for(length), progress()
            try:
                return attempt(route)
            except VsphereError as error:
                self._check_open()
                failures += 1
                fruitless = 1 if progress() > before else fruitless + 1
                failure = self._judge(route, error, fruitless)
                pause_s = self._retry.pause_s(fruitless, failures) if failure.retryable else None
                if pause_s is not None:
                    log.info("%s: again in %s s: %s", route.name, pause_s, failure)
                    self._closed.wait(pause_s)
                elif self._leave(route, failure):
                    failures = fruitless = 0
                elif failure is error:
                    raise
                else:
                    raise failure from error

    def _once(self, route: Route, method: str, exchange: Exchange) -> None:
        """Send one request; keep the connection when route and outcome allow it."""
        with self._slots:
            self._check_open()
            with self._lock:
                kept = self._idle.pop() if self._idle and route.keeps_connections else None
            try:
                self._send(route.open(self._file, method, kept), route, exchange)
            except NoAnswerError:
                if kept is None:
                    raise
                self._send(route.open(self._file, method, None), route, exchange)

    def _send(self, opened: Opened, route: Route, exchange: Exchange) -> None:
        connection, whole = opened.connection, False
        sock = connection.sock  # http.client may forget it with the answer
        with self._lock:
            self._busy.add(sock)
        try:
            self._check_open()  # `close` may have looked for busy ones before
            exchange(opened)
            whole = True
        finally:
            with self._lock:
                self._busy.discard(sock)
                keep = whole and route.keeps_connections
                if keep and connection.sock is not None and not self._closed.is_set():
                    self._idle.append(connection)
                else:
                    connection.close()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise CancelledError("the disk was closed while it was read")

    def _judge(self, route: Route, error: VsphereError, fruitless: int) -> VsphereError:
        """After HTTP 401 or 403: log in again, or find out that it is no matter of logging in."""
        if not isinstance(error, SessionLostError):
            return error
        if fruitless > 1:
            return PrivilegeError(
                f"{route.name} refuses to hand out {self._file}; the account needs "
                "Datastore.Browse and Datastore.FileManagement on its datastore",
                privilege="Datastore.FileManagement",
            )
        try:
            route.renew()
        except VsphereError as failure:
            return failure
        return error

    def _leave(self, route: Route, error: VsphereError) -> bool:
        """Use the other route from now on; False when there is none."""
        with self._lock:
            if route in self._routes:  # else another thread has left it
                if len(self._routes) == 1:
                    return False
                self._routes.remove(route)
                log.warning("%s is given up for %s: %s", route.name, self._routes[0].name, error)
        return True
