"""Faults of the data plane: before a request is answered, and in the middle of its body.

| switch | effect |
|---|---|
| slow-host, dying-host, http-500, http-503 | `strike`: before anything is answered |
| slow-stream, corrupt-body, http-500-mid-stream, truncated-body, reset-mid-stream | `spoiled` |

Fields that every one of them matches: `host` (place), `method`, `path` (of the URL).
Thread model: one connection's thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus

from lab.data_plane.place import Place, Refusal
from lab.faults import Fault, FaultName, FaultSwitches
from lab.vcenter.http_message import ConnectionCut, ConnectionReset, HttpRequest

_ERROR_PAGE = b"<html><head><title>500 Internal Server Error</title></head></html>"
_ENDINGS = (
    FaultName.HTTP_500_MID_STREAM,
    FaultName.TRUNCATED_BODY,
    FaultName.RESET_MID_STREAM,
)
_SLOW_PIECES_PER_S = 8  # a slow stream comes in so many pieces a second


def strike(place: Place, request: HttpRequest, switches: FaultSwitches) -> None:
    """Let the place be slow, dead or unable. Raises ConnectionReset or Refusal."""
    fields = _fields(place, request)
    slow = switches.take(FaultName.SLOW_HOST, **fields)
    if slow is not None:
        time.sleep(slow.amount)
    if switches.take(FaultName.DYING_HOST, **fields):
        raise ConnectionReset("the host dies")
    for name, status in (
        (FaultName.HTTP_500, HTTPStatus.INTERNAL_SERVER_ERROR),
        (FaultName.HTTP_503, HTTPStatus.SERVICE_UNAVAILABLE),
    ):
        if switches.take(name, **fields):
            raise Refusal(status, "the host could not do this")


def spoiled(
    pieces: Iterable[bytes], place: Place, request: HttpRequest, switches: FaultSwitches
) -> Iterator[bytes]:
    """The body through whatever faults are armed for it now; often as it is."""
    fields = _fields(place, request)
    corrupt = switches.take(FaultName.CORRUPT_BODY, **fields)
    if corrupt is not None:
        pieces = _corrupted(pieces, corrupt.whole_amount)
    endings = (switches.take(name, **fields) for name in _ENDINGS)
    ending = next((fault for fault in endings if fault is not None), None)
    if ending is not None:
        pieces = _ended(pieces, ending)
    slow = switches.take(FaultName.SLOW_STREAM, **fields)
    if slow is not None:
        pieces = _slowed(pieces, max(1.0, slow.amount))
    return iter(pieces)


def _corrupted(pieces: Iterable[bytes], place: int) -> Iterator[bytes]:
    for piece in pieces:
        if 0 <= place < len(piece):
            flipped = bytearray(piece)
            flipped[place] ^= 0xFF
            piece = bytes(flipped)
        place -= len(piece)
        yield piece


def _ended(pieces: Iterable[bytes], fault: Fault) -> Iterator[bytes]:
    room = fault.whole_amount
    for piece in pieces:
        if len(piece) >= room:
            yield piece[:room]
            break
        room -= len(piece)
        yield piece
    if fault.name is FaultName.RESET_MID_STREAM:
        raise ConnectionReset(fault.name.value)
    if fault.name is FaultName.HTTP_500_MID_STREAM:
        yield _ERROR_PAGE
    raise ConnectionCut(fault.name.value)


def _slowed(pieces: Iterable[bytes], bytes_per_s: float) -> Iterator[bytes]:
    step = max(1, int(bytes_per_s / _SLOW_PIECES_PER_S))
    for piece in pieces:
        for start in range(0, len(piece), step):
            part = piece[start : start + step]
            yield part
            time.sleep(len(part) / bytes_per_s)


def _fields(place: Place, request: HttpRequest) -> dict[str, str]:
    return {"host": place.name, "method": request.method, "path": request.path}
