"""One ranged GET into a caller's buffer, with every claim of the server checked.

Data path: socket -> TLS -> the caller's memory; nothing in between is copied or kept.

Invariants: a byte counts only when it belongs to exactly the range that was asked for, of a file
of exactly the expected size; no body of an unexpected answer is read. A server that fails half way
may write a page about it into the body before it hangs up, so the end of a body that broke does not
count. After an error the connection is of no use and must be closed.
Thread model: stateless; a connection belongs to one thread at a time.
Source: RFC 9110 sections 14 and 15.3.7; design notes section 4b.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus

from vmware.errors import (
    CertificateError,
    FileFaultError,
    ProtocolError,
    SessionLostError,
    TransportError,
)
from vmware.faults import FOREIGN_ERRORS, translate

_SLICE_BYTES = 1 << 20  # progress is told this often
_HELD_BACK_BYTES = 64 << 10  # not told before all has come: may be a page about an error instead
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,20})-([0-9]{1,20})/([0-9]{1,20})")


class NoAnswerError(TransportError):
    """The connection ended before an answer began; a kept one was perhaps too old."""

    code = "vsphere.transport.no-answer"


OnProgress = Callable[[int], None]


class NotReadableNowError(TransportError):
    """The server answered a read with HTTP 5xx: busy, or the file is locked by its VM."""

    code = "vsphere.transport.server-error"


def get_range(
    connection: http.client.HTTPSConnection,
    target: str,
    headers: Mapping[str, str],
    offset: int,
    buffer: memoryview,
    file_bytes: int,
    on_progress: OnProgress,
) -> None:
    """Fill `buffer` with the file's bytes from `offset`.

    Args:
        file_bytes: what the file must measure.
        on_progress: told how many bytes of `buffer` are valid, ascending; what it raises passes.

    Raises:
        SessionLostError: HTTP 401 or 403: log in again, or a privilege is missing.
        FileFaultError: no such file.
        NotReadableNowError: HTTP 5xx.
        NoAnswerError: the connection broke before the answer.
        TransportError: the connection broke, or the body was short.
        ProtocolError: the range was not honoured, or the file has another size.
    """
    last = offset + len(buffer) - 1
    try:
        asked = {**headers, "Range": f"bytes={offset}-{last}", "Accept-Encoding": "identity"}
        connection.request("GET", target, headers=asked)
        response = connection.getresponse()
    except FOREIGN_ERRORS as error:
        raise NoAnswerError(str(broken(error, offset))) from error
    check_status(response, HTTPStatus.PARTIAL_CONTENT)
    found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
    if found is None or tuple(map(int, found.groups())) != (offset, last, file_bytes):
        raise ProtocolError(
            f"asked for bytes {offset}-{last}/{file_bytes}, the server sent "
            f"{response.getheader('Content-Range', '')[:100]!r}"
        )
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise ProtocolError("the server compressed a range")
    if response.length is not None and response.length < len(buffer):
        raise TransportError(f"a body of {response.length} bytes for a range of {len(buffer)}")
    if response.length is not None and response.length > len(buffer):
        raise ProtocolError(f"a body of {response.length} bytes for a range of {len(buffer)}")
    _read_body(response, offset, buffer, on_progress)


def content_length(
    connection: http.client.HTTPSConnection, target: str, headers: Mapping[str, str]
) -> int:
    """The file's size, by HEAD. Raises: as `get_range`."""
    try:
        connection.request("HEAD", target, headers=dict(headers))
        response = connection.getresponse()
        response.read()
    except FOREIGN_ERRORS as error:
        raise broken(error, 0) from error
    check_status(response, HTTPStatus.OK)
    text = response.getheader("Content-Length", "")
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise ProtocolError("the server does not tell the size of a file")
    return int(text)


def check_status(response: http.client.HTTPResponse, expected: HTTPStatus) -> None:
    """Raises the error that an unexpected status stands for; as `get_range`."""
    status = response.status
    if status == expected:
        return
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise SessionLostError(f"the server refused access to a datastore file (HTTP {status})")
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise FileFaultError(f"the server does not find the file (HTTP {status})")
    if status >= 500 or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        raise NotReadableNowError(f"the server answered HTTP {status}")
    raise ProtocolError(f"the server answered HTTP {status} where {expected.value} was due")


def broken(error: Exception, offset: int) -> TransportError:
    """A failure of network, TLS or HTTP while disk data was on its way: it may be tried again.

    Raises:
        CertificateError: that is no such failure.
    """
    translated = translate(error, f"at byte {offset}")
    if isinstance(translated, CertificateError):
        raise translated from error
    return TransportError(str(translated))


def _read_body(
    response: http.client.HTTPResponse,
    offset: int,
    buffer: memoryview,
    on_progress: OnProgress,
) -> None:
    done = 0
    try:
        while done < len(buffer):
            count = response.readinto(buffer[done : done + _SLICE_BYTES])
            if not count:
                raise TransportError(f"the connection ended at byte {offset + done}")
            done += count
            if done < len(buffer):
                on_progress(max(0, done - _HELD_BACK_BYTES))
        if not response.isclosed() and response.read(1):  # chunked: the end is still to be read
            raise ProtocolError("more came than was asked for")
    except FOREIGN_ERRORS as error:
        raise broken(error, offset + done) from error
    on_progress(done)
