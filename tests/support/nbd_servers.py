"""NBD servers for tests: on loopback or a Unix socket, with their complaints collected.

Whatever the servers or the event loop log as an error fails the test that caused it: a traceback
is a bug even when the client noticed nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.exports.nbd import NbdExport, NbdServer, NbdTls, TcpAddress
from nbd_server.limits import Limits


class Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))

    def check(self) -> None:
        texts, self.texts = self.texts, []
        assert not texts, "\n".join(texts)


@contextmanager
def complaints() -> Iterator[Complaints]:
    handler = Complaints()
    loggers = [logging.getLogger("asyncio"), logging.getLogger("nbd_server")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    handler.check()


@contextmanager
def serving(
    *exports: NbdExport,
    address: TcpAddress | Path | None = None,
    limits: Limits | None = None,
    tls: NbdTls | None = None,
) -> Iterator[NbdServer]:
    """Serve without any complaint until the block ends."""
    server = NbdServer(exports, address=address or TcpAddress(), limits=limits, tls=tls)
    with complaints(), server:
        yield server


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.005)
