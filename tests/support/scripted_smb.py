"""The far end of an SMB 3 connection after the login, which answers reads as a test tells it.

It stands below `hyperv.smb_reads` in the place of smbprotocol and a host: a socket pair, the keys
of a session, a thread that receives as smbprotocol's does, and one that answers. Signs and seals
with code of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM
from cryptography.hazmat.primitives.cmac import CMAC
from smbprotocol import Dialects
from smbprotocol.connection import Ciphers, SigningAlgorithms
from smbprotocol.transport import Tcp

SESSION_ID = 0x5E55
SIGNING_KEY, TO_HOST_KEY, FROM_HOST_KEY = b"s" * 16, b"t" * 16, b"f" * 16
_SEALED = b"\xfdSMB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    message_id: int
    offset: int
    length: int
    credits_used: int
    credits_asked: int


class ScriptedSmb:
    """Use as a context manager. `connection` and `session` are what `SmbReads` is made of."""

    def __init__(
        self,
        content: bytes,
        *,
        signing: int = SigningAlgorithms.AES_GMAC,
        cipher: int | None = None,
        credits: int = 256,
        dialect: int = Dialects.SMB_3_1_1,
    ) -> None:
        """`cipher`: the session is sealed with it, else signed."""
        self.content = content
        self.asked: list[Asked] = []
        self.passed_on: list[bytes] = []  # what smbprotocol would have got
        self.answers: Callable[[Asked], list[bytes]] = lambda asked: [self.answer(asked)]
        self._signing, self._cipher = signing, cipher
        self._is_gcm = cipher in (Ciphers.AES_128_GCM, Ciphers.AES_256_GCM)
        ours, self._socket = socket.socketpair()
        tcp = Tcp("127.0.0.1", 445)
        tcp._sock, tcp.connected = ours, True
        self.connection = _Connection(tcp, signing, cipher, credits, dialect)
        self.session = _Session(encrypt_data=cipher is not None)
        self._threads = [threading.Thread(target=each) for each in (self._serve, self._receive)]

    def __enter__(self) -> ScriptedSmb:
        return self

    def start(self) -> None:
        """After `SmbReads` took the transport over."""
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self.connection.transport.close()
        self.hang_up()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(20)

    def hang_up(self) -> None:
        with suppress(OSError):  # it has already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def answer(
        self,
        asked: Asked,
        *,
        data: bytes | None = None,
        status: int = 0,
        credits: int | None = None,
        data_offset: int = 80,
        flags: int = 0x9,
        command: int = 8,
    ) -> bytes:
        """A protected answer with what was asked for, or with what is given instead."""
        if data is None:
            data = b"" if status else self.content[asked.offset : asked.offset + asked.length]
        granted = asked.credits_asked if credits is None else credits
        flags = flags if self._cipher is None else flags & ~0x8
        head = struct.pack("<4sHHIHHII", b"\xfeSMB", 64, 1, status, command, granted, flags, 0)
        head += struct.pack("<QIIQ16s", asked.message_id, 0, 7, SESSION_ID, b"")
        body = struct.pack("<HBBIII", 17, data_offset, 0, len(data), 0, 0)
        message = head + body + bytes(data_offset - 80) + data
        if self._cipher is not None:
            return self.seal(message)
        return self.sign(message) if flags & 0x8 else message

    def sign(self, message: bytes) -> bytes:
        (message_id,) = struct.unpack_from("<Q", message, 24)
        signature = self._signature(message_id, message, is_answer=True)
        return message[:48] + signature + message[64:]

    def seal(self, message: bytes, *, session_id: int = SESSION_ID) -> bytes:
        nonce = os.urandom(12 if self._is_gcm else 11).ljust(16, b"\0")
        rest = nonce + struct.pack("<IHHQ", len(message), 0, 1, session_id)
        kind = AESGCM if self._is_gcm else AESCCM
        sealed = kind(FROM_HOST_KEY).encrypt(nonce[: 12 if self._is_gcm else 11], message, rest)
        return _SEALED + sealed[-16:] + rest + sealed[:-16]

    def _signature(self, message_id: int, message: bytes, *, is_answer: bool) -> bytes:
        unsigned = message[:48] + bytes(16) + message[64:]
        if self._signing == SigningAlgorithms.AES_GMAC:
            nonce = struct.pack("<QI", message_id, int(is_answer))
            return AESGCM(SIGNING_KEY).encrypt(nonce, b"", unsigned)
        if self._signing == SigningAlgorithms.AES_CMAC:
            cmac = CMAC(algorithms.AES(SIGNING_KEY))
            cmac.update(unsigned)
            return cmac.finalize()
        return hmac.new(SIGNING_KEY, unsigned, hashlib.sha256).digest()[:16]

    def _serve(self) -> None:
        stream = self._socket.makefile("rb")
        try:
            while prefix := stream.read(4):
                message = stream.read(int.from_bytes(prefix, "big"))
                asked = self._parsed(message)
                self.asked.append(asked)
                for answer in self.answers(asked):
                    self._socket.sendall(len(answer).to_bytes(4, "big") + answer)
        except OSError:
            pass  # one side hung up

    def _parsed(self, message: bytes) -> Asked:
        """The request; its protection is checked."""
        if self._cipher is not None:
            assert message[:4] == _SEALED
            nonce = message[20 : 32 if self._is_gcm else 31]
            kind = AESGCM if self._is_gcm else AESCCM
            sealed = message[52:] + message[4:20]
            message = kind(TO_HOST_KEY).decrypt(nonce, sealed, message[20:52])
        used, _, command, credits_asked, flags = struct.unpack_from("<HIHHI", message, 6)
        (message_id,) = struct.unpack_from("<Q", message, 24)
        if self._cipher is None:
            assert flags & 0x8
            assert message[48:64] == self._signature(message_id, message, is_answer=False)
        assert command == 8
        length, offset = struct.unpack_from("<IQ", message, 68)
        return Asked(
            message_id=message_id,
            offset=offset,
            length=length,
            credits_used=used,
            credits_asked=credits_asked,
        )

    def _receive(self) -> None:
        """As smbprotocol's thread: any exception ends the connection."""
        try:
            while message := self.connection.transport.recv(600):
                self.passed_on.append(message)
        except Exception:
            self.connection.disconnect(False)


class _Connection:
    def __init__(
        self, tcp: Tcp, signing: int, cipher: int | None, credits: int, dialect: int
    ) -> None:
        self.transport: Any = tcp
        self.signing_algorithm_id = signing
        self.cipher_id = cipher
        self.dialect = dialect
        self.supports_multi_credit = True
        self.max_read_size = 8 << 20
        self.sequence_window = {"low": 5, "high": 5 + credits}
        self.sequence_lock = threading.Lock()

    def disconnect(self, close: bool) -> None:
        assert not close
        self.transport.close()


@dataclass
class _Session:
    encrypt_data: bool
    session_id: int = SESSION_ID
    signing_key: bytes = SIGNING_KEY
    encryption_key: bytes = TO_HOST_KEY
    decryption_key: bytes = FROM_HOST_KEY
