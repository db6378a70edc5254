"""Signatures and seals of SMB 3 messages: what goes out gets one, what comes in is checked.

Data path: `smb_reads` protects requests, `smb_transport` checks answers. The keys are those that
the login made. Nothing is copied to be signed or unsealed: the data of a read stays where it was
received.

Thread model: any thread. Source: [MS-SMB2] 2.2.41, 3.1.4.1 (signing), 3.1.4.3 (sealing).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import (
    AEADDecryptionContext,
    Cipher,
    algorithms,
    modes,
)
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM
from cryptography.hazmat.primitives.cmac import CMAC
from smbprotocol import Dialects
from smbprotocol.connection import Ciphers, SigningAlgorithms

from hyperv.errors import UnprotectedError
from hyperv.smb_messages import SEAL_BYTES, SEALED

_Bytes = bytes | bytearray | memoryview
_SEAL = struct.Struct("<4s16s16sIHHQ")
_TAG_BYTES = 16
_ROOM_BYTES = 15  # that older versions of `update_into` want behind what they write
_SIGNATURE_AT: Final = slice(48, 64)
_GCM = frozenset({Ciphers.AES_128_GCM, Ciphers.AES_256_GCM})
assert _SEAL.size == SEAL_BYTES


class SmbProtection:
    """Of one session of one connection."""

    def __init__(self, connection: Any, session: Any) -> None:
        """Both logged in, of smbprotocol."""
        is_311 = connection.dialect >= Dialects.SMB_3_1_1
        self._signing = SigningAlgorithms.AES_CMAC
        if is_311 and connection.signing_algorithm_id is not None:
            self._signing = connection.signing_algorithm_id
        self._signing_key = bytes(session.signing_key)
        self._is_gcm = is_311 and connection.cipher_id in _GCM
        self._nonce_bytes = 12 if self._is_gcm else 11
        self._encryption_key = bytes(session.encryption_key)
        self._decryption_key = bytes(session.decryption_key)
        self._session_id = int(session.session_id)

    def signed(self, message: bytes, message_id: int) -> bytes:
        """A request with its signature; its flags say already that it has one."""
        signature = self._signature(message_id, 0, message)
        return message[: _SIGNATURE_AT.start] + signature + message[_SIGNATURE_AT.stop :]

    def check_signature(self, message_id: int, head: _Bytes, data: _Bytes) -> None:
        """`head` and `data`: an answer in two parts, the first at least its header.

        Raises UnprotectedError: the signature is not the host's.
        """
        found = bytes(head[_SIGNATURE_AT])
        unsigned = bytearray(head)
        unsigned[_SIGNATURE_AT] = bytes(_TAG_BYTES)
        if not hmac.compare_digest(found, self._signature(message_id, 1, unsigned, data)):
            raise UnprotectedError("the signature of an answer is not the host's")

    def sealed(self, message: bytes) -> bytes:
        nonce = os.urandom(self._nonce_bytes)
        head = _SEAL.pack(SEALED, b"", nonce, len(message), 0, 1, self._session_id)
        kind = AESGCM if self._is_gcm else AESCCM
        sealed = kind(self._encryption_key).encrypt(nonce, message, head[20:])
        return head[:4] + sealed[-_TAG_BYTES:] + head[20:] + sealed[:-_TAG_BYTES]

    def opening(self, seal: bytes) -> Opening | None:
        """Begin to unseal a message part by part; None: its cipher only does whole ones.

        Raises UnprotectedError: it is sealed for another session.
        """
        nonce = self._nonce(seal)
        return Opening(self._decryption_key, nonce, seal) if self._is_gcm else None

    def opened(self, seal: bytes, rest: _Bytes) -> bytes:
        """The message. Raises UnprotectedError: the seal is broken, or of another session."""
        nonce = self._nonce(seal)
        kind = AESGCM if self._is_gcm else AESCCM
        whole = b"".join((rest, seal[4:20]))
        try:
            return kind(self._decryption_key).decrypt(nonce, whole, seal[20:])
        except InvalidTag as error:
            raise UnprotectedError("the seal of an answer is not the host's") from error

    def _nonce(self, seal: bytes) -> bytes:
        _, _, nonce, _, _, flags, session_id = _SEAL.unpack(seal)
        if flags != 1 or session_id != self._session_id:
            raise UnprotectedError("an answer is sealed for another session")
        return bytes(nonce[: self._nonce_bytes])

    def _signature(self, message_id: int, is_answer: int, *parts: _Bytes) -> bytes:
        if self._signing == SigningAlgorithms.AES_GMAC:
            nonce = struct.pack("<QI", message_id, is_answer)
            gmac = Cipher(algorithms.AES(self._signing_key), modes.GCM(nonce)).encryptor()
            for part in parts:
                gmac.authenticate_additional_data(part)
            gmac.finalize()
            return gmac.tag
        if self._signing == SigningAlgorithms.AES_CMAC:
            cmac = CMAC(algorithms.AES(self._signing_key))
            for part in parts:
                cmac.update(part)  # type: ignore[arg-type]  # takes every buffer
            return cmac.finalize()
        sha = hmac.new(self._signing_key, digestmod=hashlib.sha256)
        for part in parts:
            sha.update(part)
        return sha.digest()[:_TAG_BYTES]


class Opening:
    """A message that is being unsealed; nothing of it is true before `finish` returns."""

    def __init__(self, key: bytes, nonce: bytes, seal: bytes) -> None:
        self._tag = seal[4:20]
        self._context: AEADDecryptionContext = Cipher(
            algorithms.AES(key), modes.GCM(nonce)
        ).decryptor()
        self._context.authenticate_additional_data(seal[20:])

    def next(self, part: _Bytes) -> bytes:
        return self._context.update(part)

    def in_place(self, part: memoryview) -> None:
        bulk = max(len(part) - _ROOM_BYTES, 0)
        if bulk:
            self._context.update_into(part[:bulk], part)
        part[bulk:] = self._context.update(part[bulk:])

    def finish(self) -> None:
        """Raises UnprotectedError: the seal is broken."""
        try:
            self._context.finalize_with_tag(self._tag)
        except InvalidTag as error:
            raise UnprotectedError("the seal of an answer is not the host's") from error
