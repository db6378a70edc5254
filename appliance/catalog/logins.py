"""What opens the appliance after a login: sessions of browsers, tokens of programs.

Both are 32 random bytes that are handed out once; here only their SHA-256 is kept, so a copy of
the catalog opens nothing. A session ends after a time without use, and at the latest after a day.
A token never may do more than the account that made it may now, and ends with it. Only of tokens
that other tokens made before accounts were recorded for them (`created_by` is "token NAME", which
no account can be called) the account is not known: these keep their role.

Thread model: as `db.py`.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance.base.clock import Clock
from appliance.base.errors import UsageError
from appliance.catalog.accounts import Role, lesser
from appliance.catalog.db import Database
from appliance.catalog.errors import TokenNotFoundError

IDLE = timedelta(minutes=30)
LONGEST = timedelta(hours=24)
_TOUCH_EVERY = timedelta(minutes=1)
_TOKEN_PREFIX = "hf_"
_MADE_BY_TOKEN = "token "
_NAME_CHARS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An open login of a browser."""

    account: str
    role: Role
    csrf: str  # what forms and scripts of this login must bring along
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiToken:
    name: str
    role: Role
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None
    acts_as: Role  # what it may do now: its role, or that of its account if that is less
    refused: bool  # its account is disabled or gone


class Sessions:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def begin(self, account: str) -> str:
        """Open a session; return its secret, for the cookie. Always a new one."""
        secret, now = secrets.token_urlsafe(32), self._clock.now().isoformat()
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO web_sessions (secret_hash, account, csrf, created_at, used_at)"
                " VALUES (?, ?, ?, ?, ?)",
                (_hash(secret), account, secrets.token_urlsafe(32), now, now),
            )
        return secret

    def find(self, secret: str, *, used: bool = True) -> Session | None:
        """The session of a cookie; None when there is none, it is over, or its account is.

        `used`: somebody uses it now, rather than a page of its own accord.
        """
        now, hashed = self._clock.now(), _hash(secret)
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT s.account, a.role, s.csrf, s.created_at, s.used_at FROM web_sessions s"
                " JOIN accounts a ON a.name = s.account"
                " WHERE s.secret_hash = ? AND NOT a.disabled",
                (hashed,),
            ).fetchone()
        if row is None:
            return None
        account, role, csrf, created_text, used_text = row
        created_at, used_at = (datetime.fromisoformat(text) for text in (created_text, used_text))
        if now - used_at > IDLE or now - created_at > LONGEST:
            self.end(secret)
            return None
        if used and now - used_at > _TOUCH_EVERY:
            with self._database.writing() as connection:
                connection.execute(
                    "UPDATE web_sessions SET used_at = ? WHERE secret_hash = ?",
                    (now.isoformat(), hashed),
                )
        return Session(account=account, role=Role(role), csrf=csrf, created_at=created_at)

    def end(self, secret: str) -> None:
        with self._database.writing() as connection:
            connection.execute("DELETE FROM web_sessions WHERE secret_hash = ?", (_hash(secret),))

    def end_all(self, account: str) -> None:
        """After a change of password or role."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM web_sessions WHERE account = ?", (account,))


class ApiTokens:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(
        self, name: str, role: Role, *, created_by: str, expires_at: datetime | None = None
    ) -> str:
        """Return the token, which is shown once. Raises UsageError: the name is taken or unfit."""
        if not 1 <= len(name) <= _NAME_CHARS_MAX or not name.isprintable():
            raise UsageError(f"a token's name has 1 to {_NAME_CHARS_MAX} printable characters")
        token = _TOKEN_PREFIX + secrets.token_urlsafe(32)
        with self._database.writing() as connection:
            if connection.execute("SELECT 1 FROM api_tokens WHERE name = ?", (name,)).fetchone():
                raise UsageError(f"a token {name!r} exists already")
            connection.execute(
                "INSERT INTO api_tokens"
                " (name, secret_hash, role, created_by, created_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    name,
                    _hash(token),
                    role,
                    created_by,
                    self._clock.now().isoformat(),
                    expires_at and expires_at.isoformat(),
                ),
            )
        return token

    def find(self, token: str) -> ApiToken | None:
        """The token that is good now: not over, and its account may log in."""
        now = self._clock.now()
        with self._database.reading() as connection:
            row = connection.execute(
                f"{_SELECT_TOKENS} WHERE t.secret_hash = ?", (_hash(token),)
            ).fetchone()
        if row is None:
            return None
        found = _token(row)
        if found.refused or (found.expires_at is not None and now >= found.expires_at):
            return None
        if found.used_at is None or now - found.used_at > _TOUCH_EVERY:
            with self._database.writing() as connection:
                connection.execute(
                    "UPDATE api_tokens SET used_at = ? WHERE name = ?",
                    (now.isoformat(), found.name),
                )
        return found

    def list(self) -> list[ApiToken]:
        with self._database.reading() as connection:
            rows = connection.execute(f"{_SELECT_TOKENS} ORDER BY t.name").fetchall()
        return [_token(row) for row in rows]

    def remove(self, name: str) -> None:
        """Raises TokenNotFoundError."""
        with self._database.writing() as connection:
            if not connection.execute("DELETE FROM api_tokens WHERE name = ?", (name,)).rowcount:
                raise TokenNotFoundError(f"no token {name!r}")


_SELECT_TOKENS = (
    "SELECT t.name, t.role, t.created_by, t.created_at, t.expires_at, t.used_at, a.role"
    " FROM api_tokens t LEFT JOIN accounts a ON a.name = t.created_by AND NOT a.disabled"
)


def _token(row: tuple[str, str, str, str, str | None, str | None, str | None]) -> ApiToken:
    name, role, created_by, created_at, expires_at, used_at, account_role = row
    return ApiToken(
        name=name,
        role=Role(role),
        created_by=created_by,
        created_at=datetime.fromisoformat(created_at),
        expires_at=datetime.fromisoformat(expires_at) if expires_at else None,
        used_at=datetime.fromisoformat(used_at) if used_at else None,
        acts_as=lesser(Role(role), Role(account_role)) if account_role else Role(role),
        refused=account_role is None and not created_by.startswith(_MADE_BY_TOKEN),
    )


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
