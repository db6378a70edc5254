"""The multipart body in which WinRM carries a sealed SOAP message over plain HTTP.

Pure framing around a security context that seals and unseals; what does not have the exact shape
is refused. Source: [MS-WSMV] 2.2.9.1.1 (SPNEGO), 2.2.9.1.
"""

from __future__ import annotations

import re
import struct
from typing import Protocol

PROTOCOL = "application/HTTP-SPNEGO-session-encrypted"
CONTENT_TYPE = f'multipart/encrypted;protocol="{PROTOCOL}";boundary="Encrypted Boundary"'
_SOAP_TYPE = b"application/soap+xml;charset=UTF-8"
_HEAD = re.compile(
    rb"--Encrypted Boundary\r\n"
    rb"\tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n"
    rb"\tOriginalContent: type=application/soap\+xml;charset=UTF-8;Length=(\d{1,9})\r\n"
    rb"--Encrypted Boundary\r\n"
    rb"\tContent-Type: application/octet-stream\r\n"
)
_END = b"--Encrypted Boundary--\r\n"
_SIGNATURE_BYTES_MAX = 256


class SealedMessageError(ValueError):
    """The body is not one sealed message, or its seal is not of this session."""


class Seal(Protocol):
    """An authenticated security context, as pyspnego has it."""

    def wrap_winrm(self, data: bytes) -> tuple[bytes, bytes, int]: ...

    def unwrap_winrm(self, header: bytes, data: bytes) -> bytes: ...


def is_sealed(content_type: str) -> bool:
    return content_type.lower().startswith("multipart/encrypted")


def unseal(body: bytes, seal: Seal) -> bytes:
    """Return the SOAP message. Raises SealedMessageError; also what the context raises."""
    head = _HEAD.match(body)
    if head is None or not body.endswith(_END):
        raise SealedMessageError("the body is not a sealed message")
    payload = body[head.end() : -len(_END)]
    if len(payload) < 4:
        raise SealedMessageError("the sealed message has no signature")
    (signature_bytes,) = struct.unpack_from("<I", payload)
    if not 0 < signature_bytes <= min(_SIGNATURE_BYTES_MAX, len(payload) - 4):
        raise SealedMessageError(f"a signature of {signature_bytes} bytes")
    data_start = 4 + signature_bytes
    message = seal.unwrap_winrm(payload[4:data_start], payload[data_start:])
    if len(message) != int(head[1]):
        raise SealedMessageError(f"{len(message)} bytes were sealed, {int(head[1])} announced")
    return message


def seal_message(message: bytes, seal: Seal) -> bytes:
    signature, data, padding_bytes = seal.wrap_winrm(message)
    length = len(message) + padding_bytes
    return b"".join(
        (
            b"--Encrypted Boundary\r\n\tContent-Type: " + PROTOCOL.encode() + b"\r\n",
            b"\tOriginalContent: type=%b;Length=%d\r\n" % (_SOAP_TYPE, length),
            b"--Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n",
            struct.pack("<I", len(signature)) + signature + data,
            _END,
        )
    )
