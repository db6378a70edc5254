"""The people who may use the appliance: name, role, password, optional second factor.

Passwords are kept as Argon2id with 19 MiB, 2 passes, 1 lane (OWASP Password Storage Cheat Sheet;
RFC 9106). Wrong attempts lock an account for a
while, longer each time; a name that does not exist costs as much time as one that does.

Thread model: as `db.py`. `verify` computes a hash outside of any transaction.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.twofactor import InvalidToken
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from appliance.base.clock import Clock
from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.catalog.db import Database
from appliance.catalog.errors import (
    AccountExistsError,
    AccountLockedError,
    AccountNotFoundError,
    LastAdministratorError,
    WrongLoginError,
)
from appliance.catalog.sealing import SecretSealer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
PASSWORD_CHARS_MIN = 12
_PASSWORD_BYTES_MAX = 1024
_FREE_ATTEMPTS = 5
_LOCK_FIRST = timedelta(seconds=30)
_LOCK_MOST = timedelta(hours=1)
_TOTP_BYTES = 20
_TOTP_STEP_S = 30
_TOTP_DIGITS = 6


class Role(StrEnum):
    """From most to least; what each may do stands in `api/permissions.py`."""

    ADMINISTRATOR = "administrator"
    OPERATOR = "operator"
    RESTORE_ONLY = "restore-only"
    READ_ONLY = "read-only"


def lesser(one: Role, other: Role) -> Role:
    """The one that may do less."""
    order = list(Role)
    return max(one, other, key=order.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    name: str
    role: Role
    created_at: datetime
    disabled: bool
    has_totp: bool


class Accounts:
    def __init__(self, database: Database, sealer: SecretSealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock

    def any(self) -> bool:
        """Whether set-up is done."""
        with self._database.reading() as connection:
            return connection.execute("SELECT 1 FROM accounts LIMIT 1").fetchone() is not None

    def list(self) -> list[Account]:
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT name, role, created_at, disabled, sealed_totp IS NOT NULL"
                " FROM accounts ORDER BY name"
            ).fetchall()
        return [_account(row) for row in rows]

    def get(self, name: str) -> Account:
        """Raises AccountNotFoundError."""
        for account in self.list():
            if account.name == name:
                return account
        raise AccountNotFoundError(f"no account {name!r}")

    def create(self, name: str, password: Secret, role: Role, *, first: bool = False) -> Account:
        """Add an account. `first`: only while there is none, which set-up relies on.

        Tokens that an account of this name made, and that outlived it in an older release, are
        removed: the new account does not answer for them.

        Raises: UsageError for an unfit name or password, AccountExistsError.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"an account name is letters, digits, '.', '_', '@', '-': {name!r}")
        hashed = _hash(_fit(password))
        with self._database.writing() as connection:
            if first and connection.execute("SELECT 1 FROM accounts LIMIT 1").fetchone():
                raise AccountExistsError("the first account was made already")
            if connection.execute("SELECT 1 FROM accounts WHERE name = ?", (name,)).fetchone():
                raise AccountExistsError(f"account {name!r} exists already")
            connection.execute(
                "INSERT INTO accounts (name, role, password_hash, created_at) VALUES (?, ?, ?, ?)",
                (name, role, hashed, self._clock.now().isoformat()),
            )
            connection.execute("DELETE FROM api_tokens WHERE created_by = ?", (name,))
        return self.get(name)

    def verify(self, name: str, password: Secret, totp: str = "") -> Account:
        """Return the account that these open.

        Raises: WrongLoginError, AccountLockedError.
        """
        now = self._clock.now()
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT password_hash, disabled, locked_until, sealed_totp, totp_last"
                " FROM accounts WHERE name = ?",
                (name,),
            ).fetchone()
        hashed, disabled, locked_until, sealed_totp, totp_last = row or _nobody()
        if locked_until and now < datetime.fromisoformat(locked_until):
            raise AccountLockedError(f"account {name!r} is locked until {locked_until}")
        right = _matches(password.reveal(), hashed) and not disabled
        step = self._totp_step(name, sealed_totp, totp, now) if right and sealed_totp else None
        if not right or (sealed_totp and (step is None or step <= totp_last)):
            self._note_failure(name, now)
            raise WrongLoginError("user, password or code is wrong")
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE accounts SET failures = 0, locked_until = NULL, totp_last = ?"
                " WHERE name = ?",
                (totp_last if step is None else step, name),
            )
        return self.get(name)

    def set_password(self, name: str, password: Secret) -> None:
        """Raises: UsageError, AccountNotFoundError."""
        self.change(name, password=password)

    def change(
        self,
        name: str,
        *,
        role: Role | None = None,
        disabled: bool | None = None,
        password: Secret | None = None,
    ) -> None:
        """Change what is given, all of it or nothing.

        Raises: UsageError, AccountNotFoundError, LastAdministratorError.
        """
        self._keep_an_administrator(name, role in (None, Role.ADMINISTRATOR) and not disabled)
        assignment = "role = coalesce(?, role), disabled = coalesce(?, disabled)"
        values: list[object] = [role, disabled]
        if password is not None:
            assignment += ", password_hash = ?, failures = 0, locked_until = NULL"
            values.append(_hash(_fit(password)))
        self._set(name, assignment, *values)

    def remove(self, name: str) -> None:
        """Remove an account, its sessions and the tokens it made, all or nothing.

        Raises: AccountNotFoundError, LastAdministratorError.
        """
        self._keep_an_administrator(name, False)
        with self._database.writing() as connection:
            if not connection.execute("DELETE FROM accounts WHERE name = ?", (name,)).rowcount:
                raise AccountNotFoundError(f"no account {name!r}")
            connection.execute("DELETE FROM api_tokens WHERE created_by = ?", (name,))

    def enable_totp(self, name: str) -> str:
        """Make a new second factor; return its `otpauth:` URI, which is shown once."""
        key = secrets.token_bytes(_TOTP_BYTES)
        sealed = self._sealer.seal(Secret(key), (f"account {name}", "totp"))
        self._set(name, "sealed_totp = ?, totp_last = 0", sealed)
        return _totp(key).get_provisioning_uri(name, "Holdfast")

    def disable_totp(self, name: str) -> None:
        self._set(name, "sealed_totp = ?, totp_last = 0", None)

    def _totp_step(self, name: str, sealed: bytes, code: str, now: datetime) -> int | None:
        """The time step that the code is of: this one or a neighbour; None: of none."""
        key = self._sealer.unseal(sealed, (f"account {name}", "totp")).reveal()
        current = int(now.timestamp()) // _TOTP_STEP_S
        for step in (current - 1, current, current + 1):
            try:
                _totp(key).verify(code.encode(), step * _TOTP_STEP_S)
            except InvalidToken:
                continue
            return step
        return None

    def _note_failure(self, name: str, now: datetime) -> None:
        with self._database.writing() as connection:
            row = connection.execute(
                "UPDATE accounts SET failures = failures + 1 WHERE name = ? RETURNING failures",
                (name,),
            ).fetchone()
            if row is None or row[0] < _FREE_ATTEMPTS:
                return
            length = min(_LOCK_FIRST * 2 ** min(row[0] - _FREE_ATTEMPTS, 10), _LOCK_MOST)
            connection.execute(
                "UPDATE accounts SET locked_until = ? WHERE name = ?",
                ((now + length).isoformat(), name),
            )

    def _keep_an_administrator(self, name: str, stays: bool) -> None:
        able = [
            each.name
            for each in self.list()
            if each.role is Role.ADMINISTRATOR and not each.disabled
        ]
        if not stays and able == [name]:
            raise LastAdministratorError(f"{name!r} is the only administrator")

    def _set(self, name: str, assignment: str, *values: object) -> None:
        with self._database.writing() as connection:
            done = connection.execute(
                f"UPDATE accounts SET {assignment} WHERE name = ?", (*values, name)
            )
            if not done.rowcount:
                raise AccountNotFoundError(f"no account {name!r}")


def _account(row: tuple[str, str, str, int, int]) -> Account:
    name, role, created_at, disabled, has_totp = row
    return Account(
        name=name,
        role=Role(role),
        created_at=datetime.fromisoformat(created_at),
        disabled=bool(disabled),
        has_totp=bool(has_totp),
    )


@cache
def _nobody() -> tuple[str, int, None, None, int]:
    """A row that nothing opens; made when the first name is tried that does not exist."""
    return _hash(secrets.token_bytes(16)), 1, None, None, 0


def _fit(password: Secret) -> bytes:
    raw = password.reveal()
    if len(raw) > _PASSWORD_BYTES_MAX:
        raise UsageError(f"a password has at most {_PASSWORD_BYTES_MAX} bytes")
    try:
        characters = len(raw.decode())
    except UnicodeDecodeError as error:
        raise UsageError("a password is UTF-8 text") from error
    if characters < PASSWORD_CHARS_MIN:
        raise UsageError(f"a password has at least {PASSWORD_CHARS_MIN} characters")
    return raw


def _hash(password: bytes) -> str:
    return Argon2id(
        salt=secrets.token_bytes(16), length=32, iterations=2, lanes=1, memory_cost=19 * 1024
    ).derive_phc_encoded(password)


def _matches(password: bytes, hashed: str) -> bool:
    if len(password) > _PASSWORD_BYTES_MAX:
        return False
    try:
        Argon2id.verify_phc_encoded(password, hashed)
    except InvalidKey:
        return False
    return True


def _totp(key: bytes) -> TOTP:
    return TOTP(key, _TOTP_DIGITS, SHA1(), _TOTP_STEP_S)  # SHA-1 is what authenticators do
