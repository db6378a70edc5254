"""A small HTTPS file server that misbehaves on demand: ranges, HEAD, keep-alive, uploads.

    with TlsFileServer(tmp_path, {"/folder/a": content}) as server:
        server.misbehave(Fault(FaultKind.RESET, after_bytes=1000))

Each fault is used up by the next request that it fits. As a program it serves the files of a folder
for a bench: `python -m tests.support.tls_file_server FOLDER` prints port and fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import re
import socket
import ssl
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tests.support.certificates import make_self_signed

_PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]+)")


class FaultKind(Enum):
    STATUS = auto()  # `status` instead of an answer
    NO_ANSWER = auto()  # the connection ends before one
    GARBAGE = auto()  # not HTTP at all
    RESET = auto()  # TCP reset after `after_bytes` of the body
    CUT = auto()  # an orderly end after `after_bytes` of the body
    ERROR_PAGE = auto()  # like CUT, and before the end a page that is no disk
    HANG_UP = auto()  # with `status`, before the body of an upload was read
    SHORT_LENGTH = auto()  # the headers promise only `after_bytes`, and so it is
    SHIFTED_RANGE = auto()  # another range than was asked for
    OTHER_SIZE = auto()  # of the whole file, in Content-Range and Content-Length
    WHOLE_FILE = auto()  # 200 and everything
    CHUNKED = auto()  # no fault: a legal answer without a length
    COMPRESSED = auto()  # claims a content encoding
    STALL = auto()  # after `after_bytes`, until `resume` is set


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case
    connection: int  # a number per connection
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def range(self) -> tuple[int, int] | None:
        """(offset, length) that was asked for."""
        match = _RANGE.fullmatch(self.headers.get("range", ""))
        return None if match is None else (int(match[1]), int(match[2]) - int(match[1]) + 1)


@dataclass(slots=True)
class Fault:
    kind: FaultKind
    after_bytes: int = 0
    status: int = 500
    times: int = 1
    method: str = "GET"
    fits: Callable[[Request], bool] = lambda _request: True
    resume: threading.Event = field(default_factory=threading.Event)


class _EndConnection(Exception):
    """After this answer, or instead of it, the connection is closed."""


class TlsFileServer:
    def __init__(self, directory: Path, files: Mapping[str, Any]) -> None:
        """`files`: bytes-like, by path without query."""
        certificate, key = make_self_signed(directory)
        self.files = dict(files)
        self.requests: list[Request] = []
        self.allow: Callable[[Request], bool] = lambda _request: True
        self.uploads: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self._stalls: list[threading.Event] = []
        self._lock = threading.Lock()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        self.sha256, self.sha1 = hashlib.sha256(der).hexdigest(), hashlib.sha1(der).hexdigest()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        self.connections = 0
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def misbehave(self, *faults: Fault) -> None:
        with self._lock:
            self._faults += faults
            self._stalls += [fault.resume for fault in faults]

    @property
    def unused_faults(self) -> int:
        with self._lock:
            return len(self._faults)

    def __enter__(self) -> TlsFileServer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for stall in self._stalls:
                stall.set()
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._acceptor.join()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self.connections += 1
            number = self.connections
            self._sockets.add(plain)
        with contextlib.suppress(OSError, _EndConnection, ValueError):
            sock = self._context.wrap_socket(plain, server_side=True)
            with self._lock:
                self._sockets.discard(plain)
                self._sockets.add(sock)
            try:
                stream = sock.makefile("rb")
                while True:
                    self._exchange(sock, stream, number)
            finally:
                with self._lock:
                    self._sockets.discard(sock)
                stream.close()
                sock.close()
        plain.close()

    def _exchange(self, sock: ssl.SSLSocket, stream: IO[bytes], number: int) -> None:
        request = _read_head(stream, number)
        with self._lock:
            fault = next(
                (f for f in self._faults if f.method == request.method and f.fits(request)), None
            )
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
        if fault is not None and fault.kind is FaultKind.HANG_UP:
            _send_status(sock, fault.status)
            raise _EndConnection
        request = replace(request, body=b"".join(_body(stream, request.headers)))
        with self._lock:
            self.requests.append(request)
        self._answer(sock, request, fault)
        if request.headers.get("connection", "").lower() == "close":
            raise _EndConnection

    def _answer(self, sock: ssl.SSLSocket, request: Request, fault: Fault | None) -> None:
        kind = fault.kind if fault is not None else None
        if kind is FaultKind.NO_ANSWER:
            raise _EndConnection
        if kind is FaultKind.GARBAGE:
            sock.sendall(b"\x00\x01\x02 this is no HTTP\r\n\r\n")
            raise _EndConnection
        if kind is FaultKind.STATUS:
            assert fault is not None
            _send_status(sock, fault.status)
        elif not self.allow(request):
            _send_status(sock, 401)
        elif request.method in ("POST", "PUT"):
            self.uploads[request.path] = request.body
            _send_status(sock, 201)
        elif request.path not in self.files:
            _send_status(sock, 404)
        else:
            _send_file(sock, self.files[request.path], request, fault)


def _read_head(stream: IO[bytes], number: int) -> Request:
    line = stream.readline(65536).decode("latin-1")
    if not line:
        raise _EndConnection
    method, target, _ = line.split()
    headers = {}
    while text := stream.readline(65536).decode("latin-1").strip():
        name, _, value = text.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Request(method=method, target=target, headers=headers, connection=number)


def _body(stream: IO[bytes], headers: Mapping[str, str]) -> Iterator[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(stream.readline(100), 16):
            yield stream.read(size)
            stream.readline(10)
        stream.readline(10)
    elif "content-length" in headers:
        data = stream.read(int(headers["content-length"]))
        if len(data) < int(headers["content-length"]):
            raise _EndConnection
        yield data


def _send_status(sock: ssl.SSLSocket, status: int) -> None:
    sock.sendall(f"HTTP/1.1 {status} Because\r\nContent-Length: 3\r\n\r\nno\n".encode())


def _send_file(sock: ssl.SSLSocket, content: Any, request: Request, fault: Fault | None) -> None:
    kind = fault.kind if fault is not None else None
    view = memoryview(content)
    size = len(view) + (kind is FaultKind.OTHER_SIZE)
    asked = request.range
    lines = ["Accept-Ranges: bytes"]
    if request.headers.get("connection") == "close":
        lines.append("Connection: close")
    if asked is None or kind is FaultKind.WHOLE_FILE or request.method == "HEAD":
        status, start, body = 200, 0, view
        length = size
    else:
        status, start = 206, asked[0]
        body = view[start : start + asked[1]]
        if not body:
            _send_status(sock, 416)
            return
        shown = start + (512 if kind is FaultKind.SHIFTED_RANGE else 0)
        lines.append(f"Content-Range: bytes {shown}-{shown + len(body) - 1}/{size}")
        length = len(body)
    if kind is FaultKind.SHORT_LENGTH:
        assert fault is not None
        body, length = body[: fault.after_bytes], fault.after_bytes
    if kind is FaultKind.COMPRESSED:
        lines.append("Content-Encoding: gzip")
    chunked = kind is FaultKind.CHUNKED
    lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {length}")
    head = "\r\n".join([f"HTTP/1.1 {status} OK", *lines, "", ""])
    sock.sendall(head.encode())
    if request.method == "HEAD":
        return
    _send_body(sock, body, fault, chunked=chunked)


def _send_body(
    sock: ssl.SSLSocket, body: memoryview, fault: Fault | None, *, chunked: bool
) -> None:
    breaks = (FaultKind.RESET, FaultKind.CUT, FaultKind.ERROR_PAGE, FaultKind.STALL)
    if fault is not None and fault.kind in breaks:
        sock.sendall(body[: fault.after_bytes])
        if fault.kind is FaultKind.ERROR_PAGE:
            sock.sendall(b"<html>500 Internal Server Error</html>"[: len(body)])
        body = body[fault.after_bytes :]
        if fault.kind is FaultKind.RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.socket.close(sock)
        if fault.kind is not FaultKind.STALL:
            raise _EndConnection
        fault.resume.wait()
    for start in range(0, len(body), _PIECE_BYTES):
        piece = body[start : start + _PIECE_BYTES]
        if chunked:
            sock.sendall(f"{len(piece):x}\r\n".encode())
        sock.sendall(piece)
        if chunked:
            sock.sendall(b"\r\n")
    if chunked:
        sock.sendall(b"0\r\n\r\n")


def main() -> None:
    folder = Path(sys.argv[1])
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            files[f"/folder/{path.relative_to(folder)}"] = mapped
    with tempfile.TemporaryDirectory() as scratch, TlsFileServer(Path(scratch), files) as server:
        print(json.dumps({"port": server.port, "sha256": server.sha256}), flush=True)
        sys.stdin.read()  # until the parent closes it


if __name__ == "__main__":
    main()
