"""`/sdk`: a SOAP request comes in by HTTP, its result or fault goes out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pyVmomi import vmodl

from lab.vcenter.api_versions import service_versions_document, version_of
from lab.vcenter.call import Call
from lab.vcenter.dispatch import Answer, dispatch
from lab.vcenter.http_message import ConnectionCut, HttpReply, HttpRequest
from lab.vcenter.sessions import COOKIE_NAME, Session
from lab.vcenter.soap_encode import Encoder, SelfWriting, encoder, text_of
from lab.vcenter.soap_faults import SoapFaults
from lab.vcenter.soap_request import (
    BODY_LIMIT_BYTES,
    Element,
    MalformedRequestError,
    parse_envelope,
)

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter

log = logging.getLogger(__name__)

_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/" '
    'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n<soapenv:Body>\n'
)
_TAIL = "\n</soapenv:Body>\n</soapenv:Envelope>"
_XML = ("Content-Type", "text/xml; charset=utf-8")


class SoapEndpoint:
    def __init__(self, vcenter: LabVcenter) -> None:
        self._vcenter = vcenter
        self._faults = SoapFaults(vcenter.switches)

    def __call__(self, request: HttpRequest) -> HttpReply:
        if request.method == "GET" and request.path == "/sdk/vimServiceVersions.xml":
            return HttpReply(headers=[_XML], body=service_versions_document())
        if request.path.rstrip("/") not in ("/sdk", "/sdk/vimService"):
            return HttpReply(status=404)
        if request.method != "POST":
            return HttpReply(status=405, headers=[("Allow", "POST")])
        body = request.body.read_all(BODY_LIMIT_BYTES)
        if body is None:
            return HttpReply(status=413, close=True)
        version = version_of(request.header("SOAPAction"))
        encode = encoder(version)
        call = Call(
            vcenter=self._vcenter,
            session=self._vcenter.session_of(request),
            version=version,
            peer=request.peer,
            user_agent=(request.header("User-Agent") or "")[:200],
        )
        try:
            method = parse_envelope(body)
        except MalformedRequestError as error:
            return _fault(encode, vmodl.fault.InvalidRequest(msg=str(error)))
        page = self._faults.page(call, method)
        return page or self._answer(call, method, encode)

    def _answer(self, call: Call, method: Element, encode: Encoder) -> HttpReply:
        try:
            answer = dispatch(self._faults.before(call, method), method)
            reply = _result(encode, method.name, answer)
            self._faults.after(call, method)
        except vmodl.MethodFault as fault:
            return _fault(encode, fault)
        except ConnectionCut:
            raise
        except Exception as error:
            log.exception("%s failed", method.name)
            reason = f"A general system error occurred: {type(error).__name__}: {error}"
            return _fault(encode, vmodl.fault.SystemError(msg=reason, reason=reason))
        for session in call.new_session:
            reply.headers.append(("Set-Cookie", _cookie(session)))
        return reply


def _cookie(session: Session) -> str:
    return f'{COOKIE_NAME}="{session.secret}"; Path=/; HttpOnly; Secure'


def _result(encode: Encoder, method_name: str, answer: Answer) -> HttpReply:
    parts = [_HEAD, f'<{method_name}Response xmlns="urn:vim25">']
    if isinstance(answer.value, SelfWriting):
        answer.value.write_xml(parts.append, encode)
    elif answer.declared is not None and answer.value is not None:
        encode.value(parts.append, "returnval", answer.value, answer.declared)
    parts.append(f"</{method_name}Response>{_TAIL}")
    return HttpReply(headers=[_XML], body="".join(parts).encode())


def _fault(encode: Encoder, fault: Any) -> HttpReply:
    message = text_of(fault.msg or "")
    parts = [
        _HEAD,
        "<soapenv:Fault><faultcode>ServerFaultCode</faultcode>"
        f"<faultstring>{message}</faultstring><detail>",
    ]
    encode.fault_detail(parts.append, fault)
    parts.append(f"</detail></soapenv:Fault>{_TAIL}")
    return HttpReply(status=500, headers=[_XML], body="".join(parts).encode())
