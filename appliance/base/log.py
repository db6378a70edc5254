"""Events with fields on standard error: `2026-11-20T03:15:00Z info disk transferred vm=web disk=0`.

Thin over the standard library's logging: an event is a record whose message is a constant text and
whose `fields` are the values; a formatter writes them as key=value. A value can never break a line
or look like another field, whatever a guest or a hypervisor called its VM. Secrets hide themselves
(`appliance.base.secret`), also inside containers, so nothing is searched for and masked here.

Info is what an operator would tell a colleague; progress is data, not log lines.

Thread model: any thread; loggers are immutable.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from datetime import datetime
from typing import TextIO

VALUE_LIMIT = 2000  # characters; a run-away value is cut, not the log

_PLAIN = re.compile(r"[A-Za-z0-9_.,:;/@%+*()\[\]{}<>#!?|~^&$-]+")
_HANDLER_NAME = "holdfast"


class EventLog:
    """`log = EventLog(__name__)`; `log.info("disk transferred", vm=name, read_bytes=count)`."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, name: str, /, **fields: object) -> None:
        self._logger = logging.getLogger(name)
        self._fields = fields

    def bind(self, **fields: object) -> EventLog:
        """Return a log that adds these fields to every event: run, vm, disk."""
        return EventLog(self._logger.name, **(self._fields | fields))

    def debug(self, event: str, /, **fields: object) -> None:
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self._emit(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error with the traceback of the exception being handled: for defects of ours."""
        self._emit(logging.ERROR, event, fields, exc_info=True)

    def _emit(
        self, level: int, event: str, fields: dict[str, object], *, exc_info: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"fields": self._fields | fields}
            self._logger.log(level, "%s", event, extra=extra, exc_info=exc_info, stacklevel=3)


class EventFormatter(logging.Formatter):
    """One line per event (UTC, seconds), then the traceback if there is one, indented."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        fields: dict[str, object] = getattr(record, "fields", {})
        pairs = (f"{key}={format_value(value)}" for key, value in fields.items())
        event = _one_line(record.getMessage())
        line = " ".join([moment, record.levelname.lower(), event, *pairs])
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n  {_one_line(part)}" for part in trace.splitlines())
        return line


def format_value(value: object) -> str:
    """Return it bare where that is unambiguous, else as a JSON string."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value[: VALUE_LIMIT // 2]).hex()
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    if len(text) > VALUE_LIMIT:
        text = text[:VALUE_LIMIT] + "…"
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def configure_logging(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send events of `level` and up to `stream` (default: standard error); may be repeated."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(EventFormatter())
    root = logging.getLogger()
    for old in [found for found in root.handlers if found.get_name() == _HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)


def _one_line(text: str) -> str:
    """Escape line breaks and control characters, which could forge lines or drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
