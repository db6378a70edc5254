"""WS-Management envelopes: a request taken apart strictly, a reply or fault put together.

Invariants: at most `ENVELOPE_BYTES_MAX` bytes (MaxEnvelopeSizekb of Windows Server 2012 and
later); no document type, so no entities; a header marked mustUnderstand is one of those known
here. Pure. Source: DSP0226 (WS-Management) 1.1, [MS-WSMV] 2.2.1 and 3.1.4.
"""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

from lab.hyperv_host.wsman_faults import WsmanCode, WsmanFaultError

ENVELOPE_BYTES_MAX = 500 * 1024
OPERATION_TIMEOUT_S = 60.0  # where the request names none
SHELL_URI = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
S = "http://www.w3.org/2003/05/soap-envelope"
A = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
X = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
W = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
P = "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd"
F = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault"
for _prefix, _uri in (("s", S), ("a", A), ("x", X), ("w", W), ("p", P), ("f", F)):
    ET.register_namespace(_prefix, _uri)
ET.register_namespace("rsp", SHELL_URI)
_ANONYMOUS = f"{A}/role/anonymous"
_ENVELOPE_BYTES_MIN = 8192
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_KNOWN_HEADERS = {
    *(f"{{{A}}}{name}" for name in ("To", "ReplyTo", "MessageID", "Action")),
    *(f"{{{W}}}{name}" for name in ("MaxEnvelopeSize", "Locale", "OperationTimeout")),
    *(f"{{{W}}}{name}" for name in ("ResourceURI", "SelectorSet", "OptionSet")),
    *(f"{{{P}}}{name}" for name in ("DataLocale", "SessionId", "OperationID", "SequenceId")),
}
_DURATION = re.compile(
    r"P(?:(?P<days>\d{1,5})D)?"
    r"(?:T(?:(?P<hours>\d{1,6})H)?(?:(?P<minutes>\d{1,7})M)?(?:(?P<seconds>\d{1,9}(?:\.\d+)?)S)?)?"
)
_TRUE = ("true", "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class WsmanRequest:
    action: str
    resource_uri: str
    message_id: str
    timeout_s: float
    envelope_bytes: int  # the largest reply the client takes
    selectors: Mapping[str, str]
    options: Mapping[str, str]
    body: ET.Element | None  # the one element inside the Body


def parse_request(data: bytes) -> WsmanRequest:
    """Raises WsmanFaultError for whatever the service does not take."""
    if len(data) > ENVELOPE_BYTES_MAX:
        raise WsmanFaultError(WsmanCode.ENCODING_LIMIT, f"{len(data)} bytes")
    header, body = _envelope(data)
    for element in header:
        must = next((v for k, v in element.items() if k.endswith("mustUnderstand")), "false")
        if must.lower() in _TRUE and element.tag not in _KNOWN_HEADERS:
            raise WsmanFaultError(WsmanCode.MUST_UNDERSTAND, element.tag)
    _text(header, f"{{{A}}}To")
    reply_to = header.find(f"{{{A}}}ReplyTo/{{{A}}}Address")
    if reply_to is None or (reply_to.text or "").strip() != _ANONYMOUS:
        raise WsmanFaultError(WsmanCode.HEADER_REQUIRED, "ReplyTo")
    if len(body) > 1:
        raise WsmanFaultError(WsmanCode.INVALID_SOAP_BODY)
    return WsmanRequest(
        action=_text(header, f"{{{A}}}Action"),
        resource_uri=_text(header, f"{{{W}}}ResourceURI"),
        message_id=_message_id(_text(header, f"{{{A}}}MessageID")),
        timeout_s=_timeout_s(header),
        envelope_bytes=_envelope_bytes(header),
        selectors=_named(header, f"{{{W}}}SelectorSet/{{{W}}}Selector"),
        options=_named(header, f"{{{W}}}OptionSet/{{{W}}}Option"),
        body=next(iter(body), None),
    )


def duration_s(text: str) -> float | None:
    """An xs:duration without years and months in seconds; None for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groupdict().values()):
        return None
    parts = {name: float(value or 0) for name, value in match.groupdict().items()}
    return ((parts["days"] * 24 + parts["hours"]) * 60 + parts["minutes"]) * 60 + parts["seconds"]


def reply(request: WsmanRequest, action: str, *body: ET.Element) -> bytes:
    envelope, header = _new_envelope(action)
    ET.SubElement(header, f"{{{A}}}RelatesTo").text = request.message_id
    ET.SubElement(envelope, f"{{{S}}}Body").extend(body)
    return _encoded(envelope)


def fault(error: WsmanFaultError, message_id: str, machine: str) -> bytes:
    envelope, header = _new_envelope(f"{W}/fault")
    if message_id:
        ET.SubElement(header, f"{{{A}}}RelatesTo").text = message_id
    body = ET.SubElement(envelope, f"{{{S}}}Body")
    element = ET.SubElement(body, f"{{{S}}}Fault")
    code = ET.SubElement(element, f"{{{S}}}Code")
    value = ET.SubElement(code, f"{{{S}}}Value")
    value.text = "s:Sender" if error.code.by_sender else "s:Receiver"
    subcode = ET.SubElement(code, f"{{{S}}}Subcode")
    ET.SubElement(subcode, f"{{{S}}}Value").text = error.code.subcode
    reason = ET.SubElement(element, f"{{{S}}}Reason")
    text = ET.SubElement(reason, f"{{{S}}}Text", {_XML_LANG: "en-US"})
    text.text = str(error)
    detail = ET.SubElement(element, f"{{{S}}}Detail")
    named = {"Code": str(error.code.number), "Machine": machine}
    wsman_fault = ET.SubElement(detail, f"{{{F}}}WSManFault", named)
    ET.SubElement(wsman_fault, f"{{{F}}}Message").text = str(error)
    return _encoded(envelope)


def _encoded(envelope: ET.Element) -> bytes:
    data: bytes = ET.tostring(envelope, encoding="utf-8")
    return data


def _envelope(data: bytes) -> tuple[ET.Element, ET.Element]:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise WsmanFaultError(WsmanCode.INVALID_XML, "a document type")
    try:
        root = ET.fromstring(data)
    except ET.ParseError as error:
        raise WsmanFaultError(WsmanCode.INVALID_XML, str(error)) from error
    header, body = root.find(f"{{{S}}}Header"), root.find(f"{{{S}}}Body")
    if root.tag != f"{{{S}}}Envelope" or header is None:
        raise WsmanFaultError(WsmanCode.SCHEMA_VALIDATION, "no SOAP 1.2 envelope")
    if body is None:
        raise WsmanFaultError(WsmanCode.INVALID_SOAP_BODY)
    return header, body


def _text(header: ET.Element, tag: str) -> str:
    found = header.findall(tag)
    text = (found[0].text or "").strip() if len(found) == 1 else ""
    if not text:
        raise WsmanFaultError(WsmanCode.HEADER_REQUIRED, tag.rpartition("}")[2])
    return text


def _message_id(text: str) -> str:
    try:
        uuid.UUID(text.removeprefix("uuid:"))
    except ValueError as error:
        raise WsmanFaultError(WsmanCode.HEADER_REQUIRED, "MessageID") from error
    return text


def _timeout_s(header: ET.Element) -> float:
    found = header.find(f"{{{W}}}OperationTimeout")
    if found is None:
        return OPERATION_TIMEOUT_S
    seconds = duration_s(found.text or "")
    if not seconds:
        raise WsmanFaultError(WsmanCode.INVALID_TIMEOUT, repr(found.text))
    return seconds


def _envelope_bytes(header: ET.Element) -> int:
    found = header.find(f"{{{W}}}MaxEnvelopeSize")
    if found is None:
        return ENVELOPE_BYTES_MAX
    text = (found.text or "").strip()
    if not text.isascii() or not text.isdigit() or int(text[:12]) < _ENVELOPE_BYTES_MIN:
        raise WsmanFaultError(WsmanCode.ENCODING_LIMIT, f"MaxEnvelopeSize {text[:12]!r}")
    return min(int(text[:12]), ENVELOPE_BYTES_MAX)


def _named(header: ET.Element, path: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for element in header.findall(path):
        name = element.get("Name", "")
        if not name or name in named:
            raise WsmanFaultError(WsmanCode.SCHEMA_VALIDATION, f"the name {name!r}")
        named[name] = (element.text or "").strip()
    return named


def _new_envelope(action: str) -> tuple[ET.Element, ET.Element]:
    envelope = ET.Element(f"{{{S}}}Envelope", {_XML_LANG: "en-US"})
    header = ET.SubElement(envelope, f"{{{S}}}Header")
    ET.SubElement(header, f"{{{A}}}Action").text = action
    ET.SubElement(header, f"{{{A}}}MessageID").text = f"uuid:{str(uuid.uuid4()).upper()}"
    ET.SubElement(header, f"{{{A}}}To").text = _ANONYMOUS
    return envelope, header
