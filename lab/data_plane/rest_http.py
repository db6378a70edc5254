"""HTTP in front of the REST interface, and its sessions. Thread model: any thread."""

from __future__ import annotations

import json

from lab.data_plane.access import basic_credentials
from lab.data_plane.rest import SESSION_HEADER, RestApi, RestForm, RestRequest
from lab.data_plane.rest_document import MAX_BODY_BYTES
from lab.data_plane.tags import TaggedObject
from lab.faults import FaultName
from lab.vcenter.http_message import HttpReply, HttpRequest
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.managed_object import ManagedEntity
from lab.vcenter.sessions import Sessions

PREFIXES = ("/api", "/rest")


class VcenterRestSessions:
    """Logins with vCenter's users, in a table apart from SOAP's, with the same idle time."""

    def __init__(self, vcenter: LabVcenter) -> None:
        self._vcenter = vcenter
        self._sessions = Sessions(
            idle_s=vcenter.sessions.idle_s, clock=vcenter.clock, on_end=lambda session: None
        )

    def begin(self, user: str, password: str) -> str | None:
        if not self._vcenter.accounts.password_fits(user, password):
            return None
        return self._sessions.begin(user, "", "", "en").secret

    def user_of(self, session_id: str) -> str | None:
        session = self._sessions.find(session_id)
        if session is None:
            return None
        if self._vcenter.switches.take(FaultName.SESSION_DROP, method="rest", user=session.user):
            self._sessions.end(session)
            return None
        return session.user

    def end(self, session_id: str) -> None:
        session = self._sessions.find(session_id)
        if session is not None:
            self._sessions.end(session)

    def end_all(self) -> None:
        self._sessions.end_all()


class VcenterRestInventory:
    """Objects and privileges as REST calls ask for them."""

    def __init__(self, vcenter: LabVcenter) -> None:
        self._vcenter = vcenter

    def visible(self, user: str, thing: TaggedObject) -> bool:
        entity = self._vcenter.registry.get(thing.id)
        if not isinstance(entity, ManagedEntity) or entity.vim_type._wsdlName != thing.type:
            return False
        return self._vcenter.accounts.allows(user, "System.Read", entity)

    def allows(self, user: str, privilege: str, entity: str) -> bool:
        thing = self._vcenter.registry.get(entity) if entity else self._vcenter.root_folder
        return thing is not None and self._vcenter.accounts.allows(user, privilege, thing)


class RestHandler:
    def __init__(self, api: RestApi) -> None:
        self._api = api

    def __call__(self, request: HttpRequest) -> HttpReply:
        body = request.body.read_all(MAX_BODY_BYTES)
        if body is None:
            return HttpReply(status=413, close=True)
        reply = self._api.answer(
            RestRequest(
                method=request.method,
                path=request.path,
                query={name: values[0] for name, values in request.query.items()},
                session_id=request.header(SESSION_HEADER) or request.cookie(SESSION_HEADER),
                credentials=basic_credentials(request),
                body=body,
            )
        )
        answer = HttpReply(status=reply.status.value)
        if reply.document is not None:
            answer.headers.append(("Content-Type", "application/json"))
            answer.body = json.dumps(reply.document).encode()
        if reply.session_id is not None:
            path = "/api" if request.path.startswith(RestForm.CURRENT) else "/rest"
            cookie = f"{SESSION_HEADER}={reply.session_id}; Path={path}; Secure; HttpOnly"
            answer.headers.append(("Set-Cookie", cookie))
        return answer
