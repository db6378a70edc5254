"""Who speaks on a connection: NTLM (bare or in SPNEGO) on any listener, Basic only over TLS.

NTLM is done by pyspnego's acceptor, whose state belongs to the TCP connection: what it has
authenticated stays so until the connection ends, and seals its messages. As on a Windows server,
Basic is not offered where the password would travel in clear text.

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

from lab.hyperv_host.sealed_message import Seal

_USER_FILE = "NTLM_USER_FILE"
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

    @property
    def done(self) -> bool:
        return self._basic or (self._context is not None and self._context.complete)

    @property
    def seal(self) -> Seal | None:
        """What seals and unseals the messages of this connection; None before NTLM is done."""
        if self._context is None or not self._context.complete:
            return None
        return cast(Seal, self._context)

    def offers(self) -> list[tuple[str, str]]:
        """The WWW-Authenticate headers of a 401."""
        schemes = ["Negotiate", *(['Basic realm="WSMAN"'] if self._secure else [])]
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
            return self._negotiate(token)
        raise LogonRefusedError(f"{scheme} is not offered")

    def _negotiate(self, token: bytes) -> bytes | None:
        with self._accounts.shown():
            if self._context is None or self._context.complete:
                protocol = "ntlm" if token.startswith(b"NTLMSSP\0") else "negotiate"
                self._context = spnego.server(protocol=protocol)
            try:
                return self._context.step(token)
            except (SpnegoError, ValueError) as error:
                self._context = None
                raise LogonRefusedError("the logon attempt failed") from error


def _user_and_password(token: bytes) -> tuple[str, str]:
    user, _, password = token.decode("utf-8", "replace").partition(":")
    return user, password
