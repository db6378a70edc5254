"""Faults of the data plane: before a request is answered, and in the middle of its body.

| switch | effect |
|---|---|
| slow-host, dying-host, http-500, http-503 | `refuse`: before anything is answered |
| slow-stream, corrupt-body, http-500-mid-stream, truncated-body, reset-mid-stream | `BodySender` |

Fields that every one of them matches: `host` (place), `method`, `path` (of the URL).
Thread model: one connection's thread.
"""

from __future__ import annotations

import time
from http import HTTPStatus

from lab.data_plane.exchange import Exchange
from lab.faults import Fault, FaultName, FaultSwitches

_ERROR_PAGE = b"<html><head><title>500 Internal Server Error</title></head></html>"
_ENDINGS = (
    FaultName.HTTP_500_MID_STREAM,
    FaultName.TRUNCATED_BODY,
    FaultName.RESET_MID_STREAM,
)
_SLOW_PIECES_PER_S = 8  # a slow stream comes in so many pieces a second


class StreamEndedError(Exception):
    """A fault ended the body; nothing may be sent any more."""


def refuse(exchange: Exchange, switches: FaultSwitches) -> bool:
    """Let the place be slow, dead or unable; True when the request is dealt with."""
    fields = _fields(exchange)
    slow = switches.take(FaultName.SLOW_HOST, **fields)
    if slow is not None:
        time.sleep(slow.amount)
    if switches.take(FaultName.DYING_HOST, **fields):
        exchange.reset()
        return True
    for name, status in (
        (FaultName.HTTP_500, HTTPStatus.INTERNAL_SERVER_ERROR),
        (FaultName.HTTP_503, HTTPStatus.SERVICE_UNAVAILABLE),
    ):
        if switches.take(name, **fields):
            exchange.answer_error(status, "the host could not do this")
            return True
    return False


class BodySender:
    """Sends a body through whatever faults are armed for it when it begins."""

    def __init__(self, exchange: Exchange, switches: FaultSwitches) -> None:
        self._exchange = exchange
        self._sent = 0
        fields = _fields(exchange)
        self._slow = switches.take(FaultName.SLOW_STREAM, **fields)
        self._corrupt = switches.take(FaultName.CORRUPT_BODY, **fields)
        endings = (switches.take(name, **fields) for name in _ENDINGS)
        self._ending = next((fault for fault in endings if fault is not None), None)

    def send(self, data: bytes | memoryview) -> None:
        """Raises StreamEndedError where a fault ends the body; ConnectionError as a socket."""
        view = memoryview(self._spoil(data))
        if self._ending is not None:
            room = self._ending.whole_amount - self._sent
            if len(view) >= room:
                self._pass_on(view[:room])
                self._end(self._ending)
        self._pass_on(view)

    def finish(self) -> None:
        """The body is complete; a fault that waits for a later byte strikes now."""
        if self._ending is not None:
            self._end(self._ending)

    def _spoil(self, data: bytes | memoryview) -> bytes | memoryview:
        if self._corrupt is None:
            return data
        place = self._corrupt.whole_amount - self._sent
        if not 0 <= place < len(data):
            return data
        spoiled = bytearray(data)
        spoiled[place] ^= 0xFF
        return bytes(spoiled)

    def _pass_on(self, view: memoryview) -> None:
        if self._slow is None:
            self._exchange.send(view)
            self._sent += len(view)
            return
        rate = max(1.0, self._slow.amount)
        step = max(1, int(rate / _SLOW_PIECES_PER_S))
        for start in range(0, len(view), step):
            piece = view[start : start + step]
            self._exchange.send(piece)
            self._sent += len(piece)
            time.sleep(len(piece) / rate)

    def _end(self, fault: Fault) -> None:
        if fault.name is FaultName.RESET_MID_STREAM:
            self._exchange.reset()
        else:
            if fault.name is FaultName.HTTP_500_MID_STREAM:
                self._exchange.send(_ERROR_PAGE)
            self._exchange.close_after()
        raise StreamEndedError(fault.name.value)


def _fields(exchange: Exchange) -> dict[str, str]:
    return {"host": exchange.place.name, "method": exchange.method, "path": exchange.path}
