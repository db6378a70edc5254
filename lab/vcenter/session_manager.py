"""SessionManager: logging in and out, other people's sessions, one-request tickets."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pyVmomi import vim, vmodl

from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, computed, method

_LOCALES = ["en", "de", "fr", "ja", "ko", "zh_CN"]
_METHODS = {
    "httpGet": "GET",
    "httpPut": "PUT",
    "httpPost": "POST",
    "httpDelete": "DELETE",
    "httpHead": "HEAD",
    "httpOptions": "OPTIONS",
}


class SessionManager(LabObject):
    vim_type = vim.SessionManager

    @computed("sessionList")
    def _session_list(self, _call: Call | None) -> Any:
        return [session.as_user_session() for session in self.vcenter.sessions.all()]

    @computed("currentSession")
    def _current(self, call: Call | None) -> Any:
        if call is None or call.session is None:
            return None
        return call.session.as_user_session()

    @computed("defaultLocale")
    def _default_locale(self, _call: Call | None) -> Any:
        return _LOCALES[0]

    @computed("supportedLocaleList")
    def _supported_locales(self, _call: Call | None) -> Any:
        return list(_LOCALES)

    @computed("messageLocaleList")
    def _message_locales(self, _call: Call | None) -> Any:
        return list(_LOCALES)

    @method("Login")
    def login(self, call: Call, user: str, password: str, locale: str | None) -> Any:
        if call.session is not None:
            raise vim.fault.InvalidLogin(msg="This session is logged in already.")
        if locale is not None and locale.split("_")[0] not in ("en", "de", "fr", "ja", "ko", "zh"):
            raise vim.fault.InvalidLocale(msg=f"The locale {locale} is not supported.")
        if not self.vcenter.accounts.password_fits(user, password):
            raise vim.fault.InvalidLogin(
                msg="Cannot complete login due to an incorrect user name or password."
            )
        session = self.vcenter.sessions.begin(user, call.peer, call.user_agent, locale or "en")
        call.new_session.append(session)
        self.vcenter.events.post(
            vim.event.UserLoginSessionEvent,
            f"User {user} logged in from {call.peer}",
            user=user,
            extra={
                "ipAddress": call.peer,
                "userAgent": call.user_agent,
                "locale": session.locale,
                "sessionId": session.key,
            },
        )
        self.touch()
        return session.as_user_session()

    @method("Logout")
    def logout(self, call: Call) -> None:
        self.vcenter.sessions.end(call.authenticated())
        self.touch()

    @method("TerminateSession")
    def terminate(self, call: Call, keys: list[str]) -> None:
        by_key = {session.key: session for session in self.vcenter.sessions.all()}
        if call.authenticated().key in keys:
            raise vmodl.fault.InvalidArgument(
                msg="The own session ends by Logout.", invalidProperty="sessionId"
            )
        for key in keys:
            if key not in by_key:
                raise vim.fault.NotFound(msg="The session was not found.")
            self.vcenter.sessions.end(by_key[key])
        self.touch()

    @method("SessionIsActive")
    def session_is_active(self, _call: Call, key: str, user: str) -> bool:
        self.vcenter.sessions.expire()
        return any(s.key == key and s.user == user for s in self.vcenter.sessions.all())

    @method("SetLocale")
    def set_locale(self, call: Call, locale: str) -> None:
        call.authenticated().locale = locale

    @method("AcquireGenericServiceTicket", privilege="System.View")
    def acquire_generic_service_ticket(self, call: Call, spec: Any) -> Any:
        if not isinstance(spec, vim.SessionManager.HttpServiceRequestSpec):
            raise vmodl.fault.InvalidArgument(
                msg="Only HttpServiceRequestSpec is supported.", invalidProperty="spec"
            )
        verb = _METHODS.get(spec.method or "httpGet")
        parts = urlsplit(spec.url)
        if verb is None or not parts.path.startswith("/"):
            raise vmodl.fault.InvalidArgument(msg="The URL is not valid.", invalidProperty="spec")
        server = self.vcenter.identities.get(parts.netloc, self.vcenter.identity)
        ticket = self.vcenter.tickets.issue(spec.url, verb, call.authenticated().user)
        return vim.SessionManager.GenericServiceTicket(
            id=ticket.ticket_id,
            hostName=parts.hostname or self.vcenter.address,
            sslThumbprint=server.fingerprint_sha1,
            ticketType="HttpServiceTicket",
        )
