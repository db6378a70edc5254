"""Sessions: who is logged in, by the secret in the `vmware_soap_session` cookie.

A session ends by Logout, by TerminateSession, or after `idle_s` without a call; its own objects
(views, filters, collectors) go with it. Time comes from the injected clock.

Thread model: any thread; one lock.
"""

from __future__ import annotations

import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

COOKIE_NAME = "vmware_soap_session"
DEFAULT_IDLE_S = 1800.0


@dataclass(eq=False, slots=True, kw_only=True, weakref_slot=True)
class Session:
    user: str
    peer: str
    user_agent: str
    locale: str = "en"
    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    secret: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)
    login_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    active_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_call_s: float = 0.0
    calls: int = 0

    def as_user_session(self) -> Any:
        return vim.UserSession(
            key=self.key,
            userName=self.user,
            fullName=self.user,
            loginTime=self.login_at,
            lastActiveTime=self.active_at,
            locale=self.locale,
            messageLocale=self.locale,
            extensionSession=False,
            ipAddress=self.peer,
            userAgent=self.user_agent,
            callCount=self.calls,
        )


def not_authenticated(root_folder: Any) -> BaseException:
    fault: BaseException = vim.fault.NotAuthenticated(
        msg="The session is not authenticated.", object=root_folder, privilegeId="System.View"
    )
    return fault


class Sessions:
    def __init__(
        self, *, idle_s: float, clock: Callable[[], float], on_end: Callable[[Session], None]
    ) -> None:
        self.idle_s = idle_s
        self._clock = clock
        self._on_end = on_end
        self._lock = threading.Lock()
        self._by_secret: dict[str, Session] = {}

    def begin(self, user: str, peer: str, user_agent: str, locale: str) -> Session:
        session = Session(user=user, peer=peer, user_agent=user_agent, locale=locale)
        session.last_call_s = self._clock()
        with self._lock:
            self._by_secret[session.secret] = session
        return session

    def find(self, secret: str | None) -> Session | None:
        """Return the session and count a call; None when there is none, or it has expired."""
        self.expire()
        with self._lock:
            session = self._by_secret.get(secret or "")
            if session is not None:
                session.last_call_s = self._clock()
                session.active_at = datetime.now(UTC)
                session.calls += 1
            return session

    def peek(self, secret: str) -> Session | None:
        """Return the session without counting a call: reading files does not keep it alive."""
        self.expire()
        with self._lock:
            return self._by_secret.get(secret)

    def expire(self) -> None:
        """End every session that has been idle too long."""
        limit = self._clock() - self.idle_s
        with self._lock:
            idle = [s for s in self._by_secret.values() if s.last_call_s < limit]
        for session in idle:
            self.end(session)

    def end(self, session: Session) -> None:
        """Idempotent."""
        with self._lock:
            ended = self._by_secret.pop(session.secret, None)
        if ended is not None:
            self._on_end(ended)

    def end_all(self) -> None:
        """Drop every session, as a restart of the service does."""
        for session in self.all():
            self.end(session)

    def all(self) -> list[Session]:
        with self._lock:
            return list(self._by_secret.values())

    def alive(self, session: Session) -> bool:
        with self._lock:
            return self._by_secret.get(session.secret) is session
