"""Who speaks on a connection: NTLM (bare or in SPNEGO) or CredSSP on any listener, Basic over TLS.

NTLM, and CredSSP with NTLM in it, are done by pyspnego's acceptor, whose state belongs to the TCP
connection: what it has authenticated stays so until the connection ends, and seals its messages. As
on a Windows server, Basic is not offered where the password would travel in clear text.

Invariants: one account per host; a wrong password never says which part was wrong.
Thread model: `Accounts` by any thread, a `Logon` by the thread of its connection. pyspnego finds
its accounts through the environment of the process, hence the lock.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import spnego
from spnego.exceptions import SpnegoError

from lab.hyperv_host.sealed_message import Framing, Seal, SealedMessageError

_USER_FILE = "NTLM_USER_FILE"
_GCM_TAG_BYTES = 16
_environment = threading.Lock()


class LogonRefusedError(Exception):
    """The credentials are wrong, or the scheme is not offered here."""


class Accounts:
    """`folder` keeps the account file while the host runs."""

    def __init__(self, folder: Path, *, computer: str, user: str, password: str) -> None:
        if set(":\r\n") & set(user + password):
            raise ValueError("a name or password with a colon cannot be stored")
        self.user, self.password, self.computer = user, password, computer
        self._file = folder / "accounts"
        lines = [f"{domain}:{user}:{password}\n" for domain in ("", computer, ".")]
        self._file.touch(mode=0o600)
        self._file.write_text("".join(lines))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """pyspnego sees this host's accounts for the block."""
        with _environment:
            before = os.environ.get(_USER_FILE)
            os.environ[_USER_FILE] = str(self._file)
            try:
                yield
            finally:
                del os.environ[_USER_FILE]
                if before is not None:
                    os.environ[_USER_FILE] = before

    def check(self, user: str, password: str) -> bool:
        names = {name.lower() for name in (self.user, f"{self.computer}\\{self.user}")}
        same = hmac.compare_digest(password.encode(), self.password.encode())
        return user.lower() in names and same


class Logon:
    """Of one connection."""

    def __init__(self, accounts: Accounts, *, secure: bool) -> None:
        self._accounts = accounts
        self._secure = secure
        self._context: spnego.ContextProxy | None = None
        self._basic = False
        self.framing = Framing.SPNEGO

    @property
    def done(self) -> bool:
        return self._basic or (self._context is not None and self._context.complete)

    @property
    def seal(self) -> Seal | None:
        """Of this connection; None before it is known who speaks."""
        if self._context is None or not self._context.complete:
            return None
        if self.framing is Framing.CREDSSP:
            return _TlsSeal(self._context)
        return cast(Seal, self._context)

    def offers(self) -> list[tuple[str, str]]:
        """The WWW-Authenticate headers of a 401."""
        schemes = ["Negotiate", "CredSSP", *(['Basic realm="WSMAN"'] if self._secure else [])]
        return [("WWW-Authenticate", scheme) for scheme in schemes]

    def step(self, authorization: str) -> bytes | None:
        """Take an Authorization header; return the token to answer with, if there is one.

        Raises:
            LogonRefusedError: start again from the beginning.
        """
        scheme, _, text = authorization.partition(" ")
        try:
            token = base64.b64decode(text.strip(), validate=True)
        except binascii.Error as error:
            raise LogonRefusedError("the token is not base64") from error
        if scheme.lower() == "basic" and self._secure:
            self._basic = self._accounts.check(*_user_and_password(token))
            if not self._basic:
                raise LogonRefusedError("the user name or password is incorrect")
            return None
        if scheme.lower() in ("negotiate", "ntlm"):
            return self._negotiate(token, Framing.SPNEGO)
        if scheme.lower() == "credssp":
            return self._negotiate(token, Framing.CREDSSP)
        raise LogonRefusedError(f"{scheme} is not offered")

    def _negotiate(self, token: bytes, framing: Framing) -> bytes | None:
        with self._accounts.shown():
            if self._context is None or self._context.complete or self.framing is not framing:
                self.framing = framing
                self._context = spnego.server(protocol=_protocol(token, framing))
            try:
                answer = self._context.step(token)
            except (SpnegoError, ValueError) as error:
                self._context = None
                raise LogonRefusedError("the logon attempt failed") from error
            if framing is Framing.CREDSSP and self._context.complete:
                self._check_delegated(self._context)
            return answer

    def _check_delegated(self, context: spnego.ContextProxy) -> None:
        """CredSSP hands the host the password itself: it is the one that NTLM has proven."""
        found = context.get_extra_info("client_credential")
        user, password = getattr(found, "username", ""), getattr(found, "password", "")
        if not self._accounts.check(user, password):
            self._context = None
            raise LogonRefusedError("the delegated credentials are others")


def _protocol(token: bytes, framing: Framing) -> str:
    if framing is Framing.CREDSSP:
        return "credssp"
    return "ntlm" if token.startswith(b"NTLMSSP\0") else "negotiate"


def _user_and_password(token: bytes) -> tuple[str, str]:
    user, _, password = token.decode("utf-8", "replace").partition(":")
    return user, password


class _TlsSeal:
    """CredSSP's: each piece is a TLS record, and Windows wants its trailer's true length said."""

    def __init__(self, context: spnego.ContextProxy) -> None:
        self._context = context

    def wrap_winrm(self, data: bytes) -> tuple[bytes, bytes, int]:
        return self._context.wrap_winrm(data)

    def unwrap_winrm(self, header: bytes, data: bytes) -> bytes:
        suite, version, _ = self._context.get_extra_info("ssl_object").cipher()
        trailer_bytes = _GCM_TAG_BYTES + (version == "TLSv1.3")  # which adds the record's type
        if "GCM" not in suite or len(header) != trailer_bytes:
            raise SealedMessageError(f"a trailer of {len(header)} bytes with {version} {suite}")
        return self._context.unwrap_winrm(header, data)
