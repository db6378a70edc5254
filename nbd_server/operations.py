"""The blocking half: a batch of legal requests done against the backend, on a worker thread.

One batch costs one hop to a thread and one back, and one flush however many of its requests ask
for durability: the flush comes after all of them and before any of their replies.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from nbd_server.backend import Backend, Buffer
from nbd_server.errors import BackendError
from nbd_server.handshake import Session
from nbd_server.protocol import Command, CommandFlag, NbdErrno
from nbd_server.replies import (
    error_reply,
    read_reply,
    simple_reply,
    status_extents,
    status_reply,
)
from nbd_server.requests import WRITING, Refusal, Request

log = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 32 << 20  # per CACHE request: it is advice, and its length may be 4 GiB
_CACHE_STEP_BYTES = 1 << 20


class Outcome(NamedTuple):
    request: Request
    reply: list[Buffer]
    failure: Refusal | None


def perform(batch: Sequence[Request], session: Session) -> list[Outcome]:
    """Do the requests in order; never raises for what a backend does."""
    outcomes = [_attempt(request, session) for request in batch]
    if any(_wants_flush(request) for request in batch):
        failure = _flush(session.export.backend)
        if failure:
            outcomes = [
                _failed(outcome.request, failure, session)
                if _wants_flush(outcome.request) and not outcome.failure
                else outcome
                for outcome in outcomes
            ]
    return outcomes


def read_near(batch: list[Request], session: Session) -> tuple[list[Outcome], list[Request]]:
    """Do those READs that need no wait for storage; return the others too. Never raises."""
    try:
        found = session.export.backend.read_near(
            [(request.offset, request.length) for request in batch]
        )
    except Exception:  # reading one by one meets it again and reports it
        return [], batch
    outcomes, left = [], []
    for request, data in zip(batch, found, strict=True):
        if data is None or len(data) != request.length:
            left.append(request)
        else:
            outcomes.append(Outcome(request, _read_reply(request, data, session), None))
    return outcomes, left


def failure_reply(request: Request, failure: Refusal, session: Session) -> bytes:
    return error_reply(
        command=request.command,
        cookie=request.cookie,
        errno=failure.errno,
        message=failure.message,
        structured=session.structured,
    )


def _wants_flush(request: Request) -> bool:
    return request.command == Command.FLUSH or (
        bool(request.flags & CommandFlag.FUA) and request.command in WRITING
    )


def _attempt(request: Request, session: Session) -> Outcome:
    try:
        return Outcome(request, _do(request, session), None)
    except Exception as error:  # the border to foreign code: whatever it is, the client hears of it
        return _failed(request, _failure_of(error), session)


def _flush(backend: Backend) -> Refusal | None:
    if backend.read_only:
        return None
    try:
        backend.flush()
    except Exception as error:
        return _failure_of(error)
    return None


def _failure_of(error: Exception) -> Refusal:
    if isinstance(error, BackendError):
        return Refusal(error.errno, str(error))
    log.error("backend failed", exc_info=error)
    return Refusal(NbdErrno.EIO, "the disk failed")


def _failed(request: Request, failure: Refusal, session: Session) -> Outcome:
    return Outcome(request, [failure_reply(request, failure, session)], failure)


def _do(request: Request, session: Session) -> list[Buffer]:
    command, flags, cookie, offset, length, payload, _ = request
    backend = session.export.backend
    if command == Command.READ:
        return _read(request, session)
    if command == Command.WRITE:
        backend.write(offset, payload)
    elif command == Command.WRITE_ZEROES and length:
        backend.zero(offset, length, allocate=bool(flags & CommandFlag.NO_HOLE))
    elif command == Command.TRIM and length:
        backend.trim(offset, length)
    elif command == Command.CACHE:
        _read_ahead(backend, offset, min(length, CACHE_LIMIT_BYTES))
    elif command == Command.BLOCK_STATUS:
        one = bool(flags & CommandFlag.REQ_ONE)
        extents = status_extents(backend.extents(offset, length), length, one=one)
        return [status_reply(cookie, extents)]
    return [simple_reply(cookie)]


def _read(request: Request, session: Session) -> list[Buffer]:
    data = session.export.backend.read(request.offset, request.length)
    if len(data) != request.length:  # announcing more than is sent would hang the client for ever
        raise BackendError(NbdErrno.EIO, f"{len(data)} of {request.length} bytes read")
    return _read_reply(request, data, session)


def _read_reply(request: Request, data: Buffer, session: Session) -> list[Buffer]:
    if request.part_of is not None:
        return [data]  # who cut the request puts its answer together
    return read_reply(
        request.cookie,
        request.offset,
        data,
        structured=session.structured,
        fragment=not request.flags & CommandFlag.DF,
    )


def _read_ahead(backend: Backend, offset: int, length: int) -> None:
    end = offset + length
    while offset < end:
        step = min(_CACHE_STEP_BYTES, end - offset)
        backend.read(offset, step)
        offset += step
