"""The multipart body in which WinRM carries a sealed SOAP message over plain HTTP.

Pure framing around a security context that seals and unseals; what does not have the exact shape
is refused. NTLM and Kerberos seal a message as one; CredSSP seals each 16 KiB of it, as TLS does.
Source: [MS-WSMV] 2.2.9.1.1 (SPNEGO), 2.2.9.1.3 (CredSSP), 2.2.9.1.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from enum import Enum
from typing import Protocol

_SOAP_TYPE = b"application/soap+xml;charset=UTF-8"
_BOUNDARY = b"--Encrypted Boundary\r\n"
_END = b"--Encrypted Boundary--\r\n"
_SIGNATURE_BYTES_MAX = 256


class Framing(Enum):
    """Protocol, and how much of a message is sealed at once."""

    SPNEGO = ("application/HTTP-SPNEGO-session-encrypted", 1 << 30)
    CREDSSP = ("application/HTTP-CredSSP-session-encrypted", 16 << 10)

    @property
    def protocol(self) -> bytes:
        return self.value[0].encode()

    def content_type(self, message: bytes) -> str:
        many = len(message) > self.value[1]
        kind = "multipart/x-multi-encrypted" if many else "multipart/encrypted"
        return f'{kind};protocol="{self.value[0]}";boundary="Encrypted Boundary"'

    def pieces(self, message: bytes) -> Iterator[bytes]:
        for start in range(0, len(message), self.value[1]):
            yield message[start : start + self.value[1]]

    @property
    def head(self) -> re.Pattern[bytes]:
        """Of a piece; its group is the length of what is sealed in it."""
        return re.compile(
            re.escape(_BOUNDARY)
            + rb"\tContent-Type: %b\r\n" % re.escape(self.protocol)
            + rb"\tOriginalContent: type=%b;Length=(\d{1,9})\r\n" % re.escape(_SOAP_TYPE)
            + re.escape(_BOUNDARY)
            + rb"\tContent-Type: application/octet-stream\r\n"
        )


class SealedMessageError(ValueError):
    """The body is not one sealed message, or its seal is not of this session."""


class Seal(Protocol):
    """An authenticated security context, as pyspnego has it."""

    def wrap_winrm(self, data: bytes) -> tuple[bytes, bytes, int]: ...

    def unwrap_winrm(self, header: bytes, data: bytes) -> bytes: ...


def is_sealed(content_type: str) -> bool:
    return content_type.lower().startswith(("multipart/encrypted", "multipart/x-multi-encrypted"))


def unseal(body: bytes, seal: Seal, framing: Framing) -> bytes:
    """Return the SOAP message. Raises SealedMessageError; also what the context raises."""
    heads = list(framing.head.finditer(body))
    if not heads or heads[0].start() or not body.endswith(_END):
        raise SealedMessageError("the body is not a sealed message")
    ends = [*(head.start() for head in heads[1:]), len(body) - len(_END)]
    return b"".join(
        _unsealed(body[head.end() : end], seal, int(head[1]))
        for head, end in zip(heads, ends, strict=True)
    )


def _unsealed(payload: bytes, seal: Seal, length: int) -> bytes:
    if len(payload) < 4:
        raise SealedMessageError("the sealed message has no signature")
    (signature_bytes,) = struct.unpack_from("<I", payload)
    if not 0 < signature_bytes <= min(_SIGNATURE_BYTES_MAX, len(payload) - 4):
        raise SealedMessageError(f"a signature of {signature_bytes} bytes")
    data_start = 4 + signature_bytes
    message = seal.unwrap_winrm(payload[4:data_start], payload[data_start:])
    if len(message) != length:
        raise SealedMessageError(f"{len(message)} bytes were sealed, {length} announced")
    return message


def seal_message(message: bytes, seal: Seal, framing: Framing) -> bytes:
    pieces = [_sealed(piece, seal, framing) for piece in framing.pieces(message)]
    return b"".join((*pieces, _END))


def _sealed(piece: bytes, seal: Seal, framing: Framing) -> bytes:
    signature, data, padding_bytes = seal.wrap_winrm(piece)
    length = len(piece) + padding_bytes
    return b"".join(
        (
            _BOUNDARY + b"\tContent-Type: " + framing.protocol + b"\r\n",
            b"\tOriginalContent: type=%b;Length=%d\r\n" % (_SOAP_TYPE, length),
            _BOUNDARY + b"\tContent-Type: application/octet-stream\r\n",
            struct.pack("<I", len(signature)) + signature + data,
        )
    )
