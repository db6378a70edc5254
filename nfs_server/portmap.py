"""Portmap version 2: our own responder on port 111, and registration where rpcbind has it.

ESXi asks port 111 for mountd and nfsd and takes no port otherwise. The responder answers NULL,
GETPORT and DUMP from a fixed table and refuses changes and indirect calls.
Source: RFC 1833 section 3.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from nfs_server import rpc, xdr
from nfs_server.errors import ListenError, NfsServerError
from nfs_server.protocol import (
    PORTMAP_PORT,
    PORTMAP_PROGRAM,
    PORTMAP_VERSION,
    RPC_VERSION,
    AcceptStatus,
    MessageType,
    PortmapProcedure,
)
from nfs_server.vfs import Buffer

TCP, UDP = 6, 17
_MAPPING = Struct(">IIII")
_CALL = Struct(">IIIIIIIIII")
_REPLY = Struct(">IIIIIII")
_ANSWER_BYTES_MAX = 4096
_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Mapping:
    program: int
    version: int
    protocol: int
    port: int


class Portmap:
    """Answers from `mappings`; thread model: pure once they are set."""

    def __init__(self) -> None:
        self.mappings: tuple[Mapping, ...] = ()

    def serve(self, procedure: int, arguments: xdr.Decoder) -> list[Buffer] | None:
        """The body of the reply; None for a procedure that there is not. Raises XdrError."""
        if procedure == PortmapProcedure.NULL:
            arguments.finish()
            return []
        if procedure == PortmapProcedure.GETPORT:
            asked = (arguments.u32(), arguments.u32(), arguments.u32())
            arguments.u32()
            arguments.finish()
            return [xdr.U32.pack(self._port(*asked))]
        if procedure in (PortmapProcedure.SET, PortmapProcedure.UNSET):
            return [xdr.FALSE]
        if procedure == PortmapProcedure.DUMP:
            arguments.finish()
            entries = [
                xdr.TRUE + _MAPPING.pack(each.program, each.version, each.protocol, each.port)
                for each in self.mappings
            ]
            return [b"".join([*entries, xdr.FALSE])]
        return None

    def _port(self, program: int, version: int, protocol: int) -> int:
        for each in self.mappings:
            if (each.program, each.version, each.protocol) == (program, version, protocol):
                return each.port
        return 0


def register(mappings: Sequence[Mapping], *, port: int = PORTMAP_PORT) -> None:
    """Enter `mappings` into the rpcbind of this machine, replacing what was there. Blocks.

    Raises:
        ListenError: it does not answer, or refuses.
    """
    for mapping in mappings:
        _ask(PortmapProcedure.UNSET, mapping, port)
        if not _ask(PortmapProcedure.SET, mapping, port):
            raise ListenError(f"rpcbind refuses program {mapping.program} on port {mapping.port}")


def is_registered(mappings: Sequence[Mapping], *, port: int = PORTMAP_PORT) -> bool:
    """Whether the portmapper says of all of them what we do. Raises ListenError. Blocks."""
    return all(
        _ask(PortmapProcedure.GETPORT, mapping, port) == mapping.port for mapping in mappings
    )


def unregister(mappings: Sequence[Mapping], *, port: int = PORTMAP_PORT) -> None:
    """Take them out again. Raises ListenError when rpcbind does not answer."""
    for mapping in mappings:
        _ask(PortmapProcedure.UNSET, mapping, port)


def answers(*, port: int = PORTMAP_PORT) -> bool:
    """Whether a portmapper or rpcbind listens on this machine."""
    try:
        _ask(PortmapProcedure.NULL, None, port)
    except NfsServerError:
        return False
    return True


def _ask(procedure: PortmapProcedure, mapping: Mapping | None, port: int) -> int:
    """One call over loopback TCP; the number that a SET, UNSET or GETPORT returned, else 0."""
    xid = int.from_bytes(os.urandom(4), "big")
    head = (xid, MessageType.CALL, RPC_VERSION, PORTMAP_PROGRAM, PORTMAP_VERSION, procedure)
    message = _CALL.pack(*head, 0, 0, 0, 0)
    if mapping is not None:
        message += _MAPPING.pack(mapping.program, mapping.version, mapping.protocol, mapping.port)
    try:
        with socket.create_connection(("127.0.0.1", port), _ANSWER_S) as connection:
            connection.sendall(xdr.U32.pack(1 << 31 | len(message)) + message)
            buffer = rpc.RecordBuffer(_ANSWER_BYTES_MAX)
            while (record := buffer.take()) is None:
                received = connection.recv(_ANSWER_BYTES_MAX)
                if not received:
                    raise ListenError("the portmapper hung up")
                buffer.feed(received)
    except OSError as error:
        raise ListenError(f"no portmapper on port {port}: {error}") from error
    if len(record) < 24 or xdr.U32.unpack_from(record, 20)[0] != AcceptStatus.SUCCESS:
        raise ListenError("the portmapper does not take this call")
    result: int = xdr.U32.unpack_from(record, 24)[0] if len(record) == 28 else 0
    return result
