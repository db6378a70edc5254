"""Messages sealed by CredSSP, where pywinrm 0.5 says a wrong length once TLS 1.3 is agreed.

A sealed message begins with the length of its TLS trailer, which pywinrm reckons from names of
ciphers that TLS 1.3 has not. pyspnego, which seals, knows the true one.
Thread model: as `winrm_session`. Source: [MS-WSMV] 2.2.9.1.3.
"""

from __future__ import annotations

import struct
from typing import Any

import requests
from winrm.encryption import Encryption


class CredsspEncryption(Encryption):
    def __init__(self, session: requests.Session) -> None:
        super().__init__(session, "credssp")

    def _build_credssp_message(self, message: bytes, host: Any) -> bytes:
        context = self.session.auth.contexts[host]  # type: ignore[union-attr]  # logged in: it is set
        trailer, rest, _ = context.wrap_winrm(message)
        return struct.pack("<i", len(trailer)) + bytes(trailer + rest)
