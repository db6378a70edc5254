"""The Automation REST interface: sessions and tagging, in both of its forms.

| | current | legacy |
|---|---|---|
| base | `/api` | `/rest/com/vmware` |
| session | `/session` answers `"id"` | `/cis/session` answers `{"value": "id"}` |
| an id in the path | `/cis/tagging/tag/ID` | `/cis/tagging/tag/id:ID` |
| action | `?action=` | `?~action=` |
| body of a create or update | the fields | `{"create_spec": fields}`, `{"update_spec": fields}` |

One implementation answers both; `forms` says which exist (vcsim and 6.x have only the legacy one).
Pure but for the services it is given: no HTTP types. Thread-safe where they are.
Source: vSphere Automation API reference; design notes on vSphere, section 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Protocol

from lab.data_plane.rest_document import BadDocumentError, Document
from lab.data_plane.tags import TagError

SESSION_HEADER = "vmware-api-session-id"


class RestForm(StrEnum):
    CURRENT = "/api"
    LEGACY = "/rest/com/vmware"


class RestSessions(Protocol):
    """Logins of the REST interface, apart from those of SOAP. Thread-safe."""

    def begin(self, user: str, password: str) -> str | None:
        """A new session's id; None for a wrong password."""
        ...

    def user_of(self, session_id: str) -> str | None: ...

    def end(self, session_id: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RestRequest:
    method: str
    path: str  # decoded, without the query
    query: Mapping[str, str]
    session_id: str | None
    credentials: tuple[str, str] | None
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RestReply:
    """`document` None: no body."""

    status: HTTPStatus
    document: Any
    session_id: str | None = None  # of a login, for the cookie


class RestError(Exception):
    """An answer that is an error, by its vAPI type name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


_STATUS = {
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "UNAUTHORIZED": HTTPStatus.FORBIDDEN,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestCall:
    """One operation as its implementation sees it; `path_id` is the id in the path."""

    user: str
    path_id: str | None
    document: Document

    @property
    def id(self) -> str:
        """Raises RestError when the path has no id."""
        if self.path_id is None:
            raise RestError("NOT_FOUND", "an id is missing")
        return self.path_id


# By (HTTP method or action, resource below cis/tagging, with /ID behind it if the path has an id);
# the result is the JSON value of the answer.
Operation = Callable[[RestCall], Any]


class RestApi:
    """Answers REST requests; see the module docstring."""

    def __init__(
        self,
        sessions: RestSessions,
        operations: Mapping[tuple[str, str], Operation],
        forms: frozenset[RestForm] = frozenset(RestForm),
    ) -> None:
        self.forms = forms
        self._sessions = sessions
        self._operations = operations

    def answer(self, request: RestRequest) -> RestReply:
        form = next((form for form in self.forms if request.path.startswith(f"{form}/")), None)
        if form is None:
            return RestReply(status=HTTPStatus.NOT_FOUND, document=None)
        try:
            return self._answer(request, form)
        except RestError as error:
            return _error(form, error.kind, str(error))
        except TagError as error:
            return _error(form, error.kind, str(error))
        except BadDocumentError as error:
            return _error(form, "INVALID_ARGUMENT", str(error))

    def _answer(self, request: RestRequest, form: RestForm) -> RestReply:
        path = request.path.removeprefix(form).strip("/")
        if path == ("session" if form is RestForm.CURRENT else "cis/session"):
            return self._session(request, form)
        user = self._user(request)
        kind, _, thing_id = path.removeprefix("cis/tagging/").partition("/")
        if form is RestForm.LEGACY:
            thing_id = thing_id.removeprefix("id:")
        action = request.query.get("action" if form is RestForm.CURRENT else "~action")
        key = (action or request.method, f"{kind}/ID" if thing_id else kind)
        operation = self._operations.get(key)
        if operation is None or (action is not None and request.method != "POST"):
            raise RestError("NOT_FOUND", "no such operation")
        document = Document.parse(request.body)
        if form is RestForm.LEGACY:
            document = document.unwrapped("create_spec", "update_spec")
        value = operation(RestCall(user=user, path_id=thing_id or None, document=document))
        return _success(form, request.method, action, value)

    # sessions

    def _session(self, request: RestRequest, form: RestForm) -> RestReply:
        if request.method == "POST":
            session_id = self._sessions.begin(*request.credentials) if request.credentials else None
            if session_id is None:
                raise RestError("UNAUTHENTICATED", "Authentication required.")
            reply = _success(form, "POST", None, session_id)
            return RestReply(status=reply.status, document=reply.document, session_id=session_id)
        if request.query.get("~action") == "get" or request.method == "GET":
            user = self._user(request)
            return _success(form, "GET", None, {"user": user})
        if request.method == "DELETE":
            self._user(request)
            self._sessions.end(request.session_id or "")
            return _success(form, "DELETE", None, None)
        raise RestError("NOT_FOUND", "no such operation")

    def _user(self, request: RestRequest) -> str:
        user = self._sessions.user_of(request.session_id) if request.session_id else None
        if user is None:
            raise RestError("UNAUTHENTICATED", "Authentication required.")
        return user


def _success(form: RestForm, method: str, action: str | None, value: Any) -> RestReply:
    if form is RestForm.LEGACY:
        document = None if value is None else {"value": value}
        return RestReply(status=HTTPStatus.OK, document=document)
    if value is None:
        return RestReply(status=HTTPStatus.NO_CONTENT, document=None)
    created = method == "POST" and action is None
    return RestReply(status=HTTPStatus.CREATED if created else HTTPStatus.OK, document=value)


def _error(form: RestForm, kind: str, text: str) -> RestReply:
    status = _STATUS.get(kind, HTTPStatus.BAD_REQUEST)
    messages = [{"args": [], "default_message": text, "id": f"com.vmware.vapi.{kind.lower()}"}]
    if form is RestForm.LEGACY:
        document: dict[str, Any] = {
            "type": f"com.vmware.vapi.std.errors.{kind.lower()}",
            "value": {"messages": messages},
        }
    else:
        document = {"error_type": kind, "messages": messages}
    return RestReply(status=status, document=document)
