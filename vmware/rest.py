"""vCenter's REST interface: a login of its own, then JSON over one verified connection.

Two dialects exist: `/api` (vCenter 7 and later) with bare results, and `/rest/com/vmware` with
results under `value` and actions written `?~action=`. The newer is tried first. Invariants: the
password leaves over a pinned connection only, in a header; an answer is at most `ANSWER_BYTES_MAX`
and its JSON is checked by who asked. A lost session is replaced once per request. One thread at a
time.
Source: vSphere Automation API reference, `cis/session`; design notes section 1.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from vmware import https
from vmware.errors import (
    InvalidRequestError,
    LoginError,
    ObjectGoneError,
    PrivilegeError,
    ProtocolError,
    RefusedError,
    SessionLostError,
    UnreachableError,
    UnsupportedError,
    VsphereError,
)
from vmware.faults import translated
from vmware.session import Session

ANSWER_BYTES_MAX = 32 << 20
_TIMEOUT_S = 60.0
_HEADER = "vmware-api-session-id"


class Dialect(StrEnum):
    """By the path that everything of it is under."""

    API = "/api"
    LEGACY = "/rest/com/vmware"


_LOGIN_PATHS = {Dialect.API: "/api/session", Dialect.LEGACY: "/rest/com/vmware/cis/session"}
_NO_SUCH_DIALECT = (301, 302, 307, 308, 400, 404, 405)
_ERRORS: dict[int, type[VsphereError]] = {
    400: InvalidRequestError,
    401: SessionLostError,
    403: PrivilegeError,
    404: ObjectGoneError,
    503: UnreachableError,
}


class RestSession:
    """Log in with `RestSession.connect`; a context manager that logs out."""

    def __init__(self, session: Session, connection: http.client.HTTPConnection) -> None:
        self._session = session
        self._connection = connection
        self._id = ""
        self.dialect = Dialect.API

    @classmethod
    def connect(cls, session: Session) -> RestSession:
        """Log in to the vCenter of `session` as the same user.

        Raises:
            UnsupportedError: a single ESXi host, which has no such interface.
            LoginError, CertificateError, UnreachableError: as for `Session.connect`.
        """
        if not session.is_vcenter:
            raise UnsupportedError(f"{session.endpoint.address} is no vCenter: it has no REST API")
        at = session.endpoint
        found = cls(session, https.connect(at.address, at.port, at.fingerprint_sha256, _TIMEOUT_S))
        try:
            found._log_in()
        except BaseException:
            found._connection.close()
            raise
        return found

    def get(self, what: str, path: str) -> Any:
        """The JSON at `path`, such as `/cis/tagging/tag`; `quoted` its parts."""
        return self._ask(what, "GET", path, None)

    def act(self, what: str, path: str, action: str, body: Mapping[str, Any]) -> Any:
        """The JSON that a POST of `action` answers."""
        mark = "action" if self.dialect is Dialect.API else "~action"
        return self._ask(what, "POST", f"{path}?{urlencode({mark: action}, safe='~')}", body)

    def item(self, path: str, identifier: str) -> str:
        """The path of one object of a collection, in the words of the dialect."""
        mark = "" if self.dialect is Dialect.API else "id:"
        return f"{path}/{mark}{quote(identifier, safe=':')}"

    def close(self) -> None:
        """Log out. Idempotent; never raises."""
        if self._id:
            with suppress(VsphereError):
                self._send("log out", "DELETE", _LOGIN_PATHS[self.dialect], None)
        self._id = ""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _log_in(self) -> None:
        what = f"log in to the REST API of {self._session.endpoint.address}"
        user = self._session.endpoint.user
        token = base64.b64encode(f"{user}:{self._session.ask_password()}".encode()).decode()
        status, body = 0, b""
        for dialect in Dialect:
            self.dialect, self._id = dialect, ""
            headers = {"Authorization": f"Basic {token}"}
            status, body = self._exchange(what, "POST", _LOGIN_PATHS[dialect], None, headers)
            if status not in _NO_SUCH_DIALECT:
                break
        else:
            raise UnsupportedError(f"{what}: it has neither /api nor /rest (HTTP {status})")
        if status in (401, 403):
            raise LoginError(f"{what} as {user}: HTTP {status}")
        answer = self._parsed(what, status, body)
        if not isinstance(answer, str) or not answer:
            raise ProtocolError(f"{what}: the answer is no session id")
        self._id = answer

    def _ask(self, what: str, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            return self._send(what, method, self.dialect + path, body)
        except SessionLostError:
            self._log_in()
        return self._send(what, method, self.dialect + path, body)

    def _send(self, what: str, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        status, answer = self._exchange(what, method, path, body, {_HEADER: self._id})
        return self._parsed(what, status, answer)

    def _exchange(
        self,
        what: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
    ) -> tuple[int, bytes]:
        sent = None if body is None else json.dumps(body).encode()
        kind = {"Accept": "application/json"} | (
            {} if sent is None else {"Content-Type": "application/json"}
        )
        with translated(what):
            try:
                self._connection.request(method, path, sent, {**kind, **headers})
                response = self._connection.getresponse()
                answer = response.read(ANSWER_BYTES_MAX + 1)
            except (OSError, http.client.HTTPException):
                self._connection.close()  # the next request opens and verifies a new one
                raise
        if len(answer) > ANSWER_BYTES_MAX:
            self._connection.close()
            raise ProtocolError(f"{what}: the answer exceeds {ANSWER_BYTES_MAX} bytes")
        return response.status, answer

    def _parsed(self, what: str, status: int, answer: bytes) -> Any:
        if not 200 <= status < 300:
            raise _ERRORS.get(status, RefusedError)(f"{what}: HTTP {status}")
        if not answer.strip():
            return None
        try:
            document = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"{what}: the answer is no JSON") from error
        if self.dialect is Dialect.LEGACY and isinstance(document, dict):
            return document.get("value")
        return document
