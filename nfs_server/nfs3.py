"""NFS version 3: which function serves a procedure, on which lane, and what its failures look like.

Lanes keep slow work out of the way of quick work: what answers from memory is done on the event
loop; names and attributes have workers of their own, so they are served while every data worker
waits for a disk (a host gives a datastore up when its heartbeat, a GETATTR, hangs).
Source: RFC 1813 section 3.3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from nfs_server import procedures_attributes as attributes
from nfs_server import procedures_data as data
from nfs_server import procedures_listing as listing
from nfs_server import procedures_names as names
from nfs_server import xdr
from nfs_server.errors import VfsError, XdrError
from nfs_server.protocol import Procedure, Status
from nfs_server.request import Request
from nfs_server.results import ABSENT_WCC, OK, status_word
from nfs_server.vfs import Buffer

log = logging.getLogger(__name__)


class Lane(Enum):
    LOOP = "loop"
    METADATA = "metadata"
    DATA = "data"


class Effect(Enum):
    NONE = "none"
    REPEATABLE = "repeatable"  # changes something; doing it twice at once is the same
    ONCE = "once"  # a repeated request must get the first one's reply


@dataclass(frozen=True, slots=True)
class Service:
    """How one procedure is served."""

    serve: Callable[[Request], list[Buffer] | data.Written]
    lane: Lane
    failure: bytes = xdr.FALSE  # body of a failure when nothing is known of any file
    effect: Effect = Effect.NONE


_TWO_WCC = ABSENT_WCC + ABSENT_WCC
_CHANGE = (Lane.METADATA, ABSENT_WCC, Effect.ONCE)
SERVICES: dict[int, Service] = {
    Procedure.GETATTR: Service(attributes.getattr_, Lane.LOOP, b""),
    Procedure.SETATTR: Service(attributes.setattr_, *_CHANGE),
    Procedure.LOOKUP: Service(names.lookup, Lane.LOOP),
    Procedure.ACCESS: Service(attributes.access, Lane.LOOP),
    Procedure.READLINK: Service(names.readlink, Lane.METADATA),
    Procedure.READ: Service(data.read, Lane.DATA),
    Procedure.WRITE: Service(data.write, Lane.DATA, ABSENT_WCC, Effect.REPEATABLE),
    Procedure.CREATE: Service(names.create, *_CHANGE),
    Procedure.MKDIR: Service(names.mkdir, *_CHANGE),
    Procedure.SYMLINK: Service(names.symlink, *_CHANGE),
    Procedure.MKNOD: Service(names.mknod, *_CHANGE),
    Procedure.REMOVE: Service(names.remove, *_CHANGE),
    Procedure.RMDIR: Service(names.rmdir, *_CHANGE),
    Procedure.RENAME: Service(names.rename, Lane.METADATA, _TWO_WCC, Effect.ONCE),
    Procedure.LINK: Service(names.link, Lane.METADATA, xdr.FALSE + ABSENT_WCC, Effect.ONCE),
    Procedure.READDIR: Service(listing.readdir, Lane.METADATA),
    Procedure.READDIRPLUS: Service(listing.readdirplus, Lane.METADATA),
    Procedure.FSSTAT: Service(attributes.fsstat, Lane.METADATA),
    Procedure.FSINFO: Service(attributes.fsinfo, Lane.LOOP),
    Procedure.PATHCONF: Service(attributes.pathconf, Lane.LOOP),
    Procedure.COMMIT: Service(data.commit, Lane.LOOP, ABSENT_WCC),
}


READ = SERVICES[Procedure.READ]


def serve(service: Service, request: Request) -> list[Buffer] | data.Written:
    """Return the reply's body with its status, or a write that is to be synced first.

    Raises:
        XdrError: the arguments are garbage.
    """
    try:
        found = service.serve(request)
    except XdrError:
        raise
    except Exception as error:
        return failed(service, request, error)
    finally:
        request.end()
    return found if isinstance(found, data.Written) else [OK, *found]


def try_read(request: Request) -> list[Buffer] | data.Range:
    """A READ without blocking: its reply's body, or what `finish_read` is to read."""
    try:
        found = data.try_read(request)
    except XdrError:
        raise
    except Exception as error:
        return failed(READ, request, error)
    return found if isinstance(found, data.Range) else [OK, *found]


def finish_read(request: Request, wanted: data.Range) -> list[Buffer]:
    """On a worker: the reply's body."""
    try:
        return [OK, *data.read_range(wanted)]
    except Exception as error:
        return failed(READ, request, error)


def failed(service: Service, request: Request, error: Exception) -> list[Buffer]:
    """The body of a failure."""
    if isinstance(error, VfsError):
        status = error.status
    else:
        log.error("%s failed: %s", service.serve.__name__, error, exc_info=error)
        status = Status.IO
    try:
        body = request.on_failure()
    except Exception:  # a tree in trouble; the status still gets out
        body = b""
    return [status_word(status), body or service.failure]


def perform(
    batch: Sequence[tuple[Service, Request, data.Range | None]],
) -> list[list[Buffer] | XdrError]:
    """Serve a batch on a worker thread; each file written to is synced once. Never raises."""
    results: list[list[Buffer] | XdrError | data.Written] = []
    for service, request, wanted in batch:
        try:
            if wanted is None:
                results.append(serve(service, request))
            else:
                results.append(finish_read(request, wanted))
        except XdrError as error:
            results.append(error)
    synced: dict[tuple[int, int], Exception | None] = {}
    return [
        _answer(service, request, result, synced) if isinstance(result, data.Written) else result
        for (service, request, _), result in zip(batch, results, strict=True)
    ]


def _answer(
    service: Service,
    request: Request,
    written: data.Written,
    synced: dict[tuple[int, int], Exception | None],
) -> list[Buffer]:
    try:
        failure = _sync_once(written, synced)
        if failure is None:
            return [OK, *written.reply()]
    except Exception as error:
        failure = error
    return failed(service, request, failure)


def _sync_once(
    written: data.Written, synced: dict[tuple[int, int], Exception | None]
) -> Exception | None:
    """Sync its file, once for all writes of the batch; the error of that, if there was one."""
    target = written.target
    key = (target.tree_id, target.number)
    if key not in synced:
        try:
            target.tree.sync(target.number)
            synced[key] = None
        except Exception as error:
            synced[key] = error
    return synced[key]
