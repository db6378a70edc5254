"""What servers or the event loop log as an error fails the test that caused it: a traceback is a
bug even when the client noticed nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOGGERS = ("asyncio", "nbd_server", "nfs_server", "appliance")


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
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    handler.check()


def eventually(condition: Callable[[], bool]) -> None:
    """For what no event tells."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.01)
