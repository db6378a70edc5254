"""A bare NBD client for tests: it sends what it is told, legal or not, and checks what comes back.

Blocking, one socket, a timeout on everything, so a server that hangs fails the test.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path

from nbd_server import protocol
from nbd_server.protocol import ChunkType, Command, Option, OptionReply

TIMEOUT_S = 20.0


@dataclass
class Reply:
    """All chunks of one answer; `data` is what a READ of `length` bytes put together."""

    cookie: int
    errno: int = 0
    message: str = ""
    data: bytes = b""
    hole_bytes: int = 0
    content_chunks: int = 0
    extents: list[tuple[int, int]] = field(default_factory=list)


class NbdClient:
    def __init__(self, address: tuple[str, int] | Path, *, client_flags: int = 3) -> None:
        if isinstance(address, Path):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(TIMEOUT_S)
            self.sock.connect(str(address))
        else:
            self.sock = socket.create_connection(address, timeout=TIMEOUT_S)
        greeting = protocol.GREETING.unpack(self.receive(protocol.GREETING.size))
        assert greeting == (protocol.NBD_MAGIC, protocol.OPTION_MAGIC, 3)
        self.sock.sendall(protocol.CLIENT_FLAGS.pack(client_flags))
        self.structured = False
        self.size_bytes = 0
        self.flags = 0
        self._reads: dict[int, tuple[int, int]] = {}  # cookie: offset, length

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def receive(self, count: int) -> bytes:
        """Raises EOFError when the server closes first."""
        pieces = []
        while count:
            piece = self.sock.recv(min(count, 1 << 20))
            if not piece:
                raise EOFError("the server closed the connection")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def closed_by_server(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    # negotiation

    def send_option(self, option: int, data: bytes = b"") -> None:
        header = protocol.OPTION_HEADER.pack(protocol.OPTION_MAGIC, option, len(data))
        self.sock.sendall(header + data)

    def option_reply(self, option: int) -> tuple[int, bytes]:
        header = self.receive(protocol.OPTION_REPLY.size)
        magic, echoed, kind, length = protocol.OPTION_REPLY.unpack(header)
        assert (magic, echoed) == (protocol.OPTION_REPLY_MAGIC, option)
        assert length <= 2 * protocol.MAX_NAME_BYTES + 64
        return kind, self.receive(length)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send it and return all replies, the last being ACK or an error."""
        self.send_option(option, data)
        replies = [self.option_reply(option)]
        while replies[-1][0] != OptionReply.ACK and replies[-1][0] < 1 << 31:
            replies.append(self.option_reply(option))
        return replies

    def negotiate(
        self, name: str, *, structured: bool = True, allocation: bool = False
    ) -> NbdClient:
        """Reach the transmission phase of an export."""
        if structured:
            assert self.option(Option.STRUCTURED_REPLY)[-1][0] == OptionReply.ACK
            self.structured = True
        if allocation:
            replies = self.option(Option.SET_META_CONTEXT, context_data(name, b"base:allocation"))
            assert [kind for kind, _ in replies] == [OptionReply.META_CONTEXT, OptionReply.ACK]
        replies = self.option(Option.GO, info_data(name))
        assert replies[-1][0] == OptionReply.ACK, replies
        _, self.size_bytes, self.flags = struct.unpack(">HQH", replies[0][1])
        return self

    # transmission

    def send(
        self,
        command: int,
        *,
        cookie: int = 1,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        payload: bytes = b"",
    ) -> None:
        if command == Command.READ:
            self._reads[cookie] = (offset, length)
        header = protocol.REQUEST.pack(
            protocol.REQUEST_MAGIC, flags, command, cookie, offset, length
        )
        self.sock.sendall(header + payload)

    def request(
        self,
        command: int,
        *,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        payload: bytes = b"",
    ) -> Reply:
        self.send(command, offset=offset, length=length, flags=flags, payload=payload)
        return self.reply()

    def read(self, offset: int, length: int, flags: int = 0) -> Reply:
        return self.request(Command.READ, offset=offset, length=length, flags=flags)

    def write(self, offset: int, data: bytes, flags: int = 0) -> Reply:
        return self.request(
            Command.WRITE, offset=offset, length=len(data), flags=flags, payload=data
        )

    def reply(self) -> Reply:
        """Return the next whole answer; chunks of different answers must not be mixed here."""
        (magic,) = struct.unpack(">I", self.receive(4))
        if magic == protocol.SIMPLE_REPLY_MAGIC:
            errno, cookie = struct.unpack(">IQ", self.receive(12))
            read = self._reads.pop(cookie, None)
            assert not (read and self.structured), "a simple reply to a READ"
            data = self.receive(read[1]) if read and not errno else b""
            return Reply(cookie, errno=errno, data=data)
        assert magic == protocol.STRUCTURED_REPLY_MAGIC and self.structured, hex(magic)
        return self._chunks()

    def _chunks(self) -> Reply:
        answer: Reply | None = None
        filled: dict[int, bytes] = {}
        while True:
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            answer = answer or Reply(cookie)
            assert cookie == answer.cookie
            self._chunk(answer, filled, kind, length)
            if flags & protocol.CHUNK_DONE:
                break
            assert struct.unpack(">I", self.receive(4))[0] == protocol.STRUCTURED_REPLY_MAGIC
        read = self._reads.pop(answer.cookie, None)
        if read and not answer.errno:
            answer.data = _assembled(filled, *read)
        return answer

    def _chunk(self, answer: Reply, filled: dict[int, bytes], kind: int, length: int) -> None:
        if kind == ChunkType.NONE:
            assert length == 0
        elif kind == ChunkType.OFFSET_DATA:
            (offset,) = struct.unpack(">Q", self.receive(8))
            assert length > 8 and offset not in filled
            filled[offset] = self.receive(length - 8)
            answer.content_chunks += 1
        elif kind == ChunkType.OFFSET_HOLE:
            offset, hole = struct.unpack(">QI", self.receive(12))
            assert length == 12 and hole and offset not in filled
            filled[offset] = bytes(hole)
            answer.hole_bytes += hole
            answer.content_chunks += 1
        elif kind == ChunkType.BLOCK_STATUS:
            body = self.receive(length)
            assert struct.unpack(">I", body[:4])[0] == protocol.ALLOCATION_CONTEXT_ID
            answer.extents += list(protocol.STATUS_EXTENT.iter_unpack(body[4:]))
        else:
            assert kind == ChunkType.ERROR, kind
            answer.errno, message = struct.unpack(">IH", self.receive(6))
            answer.message = self.receive(message).decode()
            assert length == 6 + message


def _assembled(filled: dict[int, bytes], offset: int, length: int) -> bytes:
    """Chunks must cover the range exactly, without overlap."""
    data = b""
    for start in sorted(filled):
        assert start == offset + len(data), "chunks overlap or leave a gap"
        data += filled[start]
    assert len(data) == length
    return data


def info_data(name: str, *infos: int) -> bytes:
    raw = name.encode()
    return struct.pack(">I", len(raw)) + raw + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def context_data(name: str, *queries: bytes) -> bytes:
    raw = name.encode()
    body = b"".join(struct.pack(">I", len(query)) + query for query in queries)
    return struct.pack(">I", len(raw)) + raw + struct.pack(">I", len(queries)) + body
