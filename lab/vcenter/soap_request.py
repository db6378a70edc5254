"""A SOAP request as a tree, parsed defensively: no document type, no entities, all sizes bounded.

Source: SOAP 1.1; what is accepted is what pyVmomi and govmomi send.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers.expat import ExpatError, ParserCreate

BODY_LIMIT_BYTES = 16 << 20
_DEPTH_LIMIT = 64
_ELEMENT_LIMIT = 500_000
_SEPARATOR = " "
_ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"


class MalformedRequestError(Exception):
    """The request is not a SOAP envelope with one method in its body."""


@dataclass(slots=True, kw_only=True)
class Element:
    namespace: str
    name: str
    attributes: dict[str, str]
    xsi_type: tuple[str, str] | None  # namespace and name
    is_nil: bool
    type_name: str | None  # the plain `type` attribute of a reference, without its prefix
    children: list[Element] = field(default_factory=list)
    text: str = ""


# govmomi writes xsi:type="xsd:string" and declares no xsd; vCenter takes it all the same.
_ASSUMED = {"xsd": ["http://www.w3.org/2001/XMLSchema"]}


class _TreeBuilder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._texts: list[list[str]] = []
        self._prefixes: dict[str, list[str]] = {}
        self._count = 0
        self.parser = ParserCreate(namespace_separator=_SEPARATOR)
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._data
        self.parser.StartNamespaceDeclHandler = self._declare
        self.parser.EndNamespaceDeclHandler = self._undeclare
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.EntityDeclHandler = self._refuse

    def _refuse(self, *_: object) -> None:
        raise MalformedRequestError("a document type declaration is not allowed")

    def _declare(self, prefix: str | None, uri: str | None) -> None:
        self._prefixes.setdefault(prefix or "", []).append(uri or "")

    def _undeclare(self, prefix: str | None) -> None:
        self._prefixes[prefix or ""].pop()

    def _qualified(self, value: str) -> tuple[str, str]:
        prefix, _, name = value.strip().rpartition(":")
        spaces = self._prefixes.get(prefix) or _ASSUMED.get(prefix)
        if not spaces:
            if prefix:
                raise MalformedRequestError(f"the prefix {prefix!r} is not declared")
            return "", name
        return spaces[-1], name

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > _ELEMENT_LIMIT or len(self._open) >= _DEPTH_LIMIT:
            raise MalformedRequestError("the request is too large")
        namespace, _, name = tag.rpartition(_SEPARATOR)
        dynamic = attributes.get(f"{_INSTANCE}{_SEPARATOR}type")
        plain = attributes.get("type")
        element = Element(
            namespace=namespace,
            name=name,
            attributes=attributes,
            xsi_type=self._qualified(dynamic) if dynamic else None,
            is_nil=attributes.get(f"{_INSTANCE}{_SEPARATOR}nil") in ("true", "1"),
            type_name=plain.rpartition(":")[2] if plain else None,
        )
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)
        self._texts.append([])

    def _end(self, _tag: str) -> None:
        self._open.pop().text = "".join(self._texts.pop())

    def _data(self, data: str) -> None:
        self._texts[-1].append(data)


def parse_envelope(body: bytes) -> Element:
    """Return the method element of the body. Raises MalformedRequestError."""
    builder = _TreeBuilder()
    try:
        builder.parser.Parse(body, True)
    except (ExpatError, UnicodeError) as error:
        raise MalformedRequestError(f"XML document cannot be parsed: {error}") from error
    root = builder.root
    if root is None or (root.namespace, root.name) != (_ENVELOPE, "Envelope"):
        raise MalformedRequestError("the document is not a SOAP envelope")
    bodies = [e for e in root.children if (e.namespace, e.name) == (_ENVELOPE, "Body")]
    if len(bodies) != 1 or len(bodies[0].children) != 1:
        raise MalformedRequestError("the SOAP body must hold exactly one method")
    return bodies[0].children[0]
