"""Reads properties of many objects with few calls: the property collector, paged.

Two forms: `fetch…` gives pyVmomi's values and suits some hundred objects; `read_all` and
`read_some` give `Record`s over XML and suit the whole inventory. Invariants: only the paths asked
for travel; an unset property is absent; one that the server could not read is in `unreadable` with
the name of its fault, so that a privilege missing on one VM costs one property and not the
inventory. Pages bound what the server builds and what is parsed at once. Thread-safe; blocks.
Source: design notes section 1; vSphere Web Services SDK programming guide, PropertyCollector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from xml.etree.ElementTree import Element

from pyVmomi import vim, vmodl

from vmware import soap_tree
from vmware.errors import ProtocolError, SessionLostError, VsphereError
from vmware.session import Session
from vmware.soap_tree import VIM, type_of

PAGE_OBJECTS = 500

_Collector = vmodl.query.PropertyCollector
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Leaf paths of one type and of the types derived from it."""

    kind: type
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What was read of one object, as pyVmomi's values."""

    object: Any  # the managed object
    values: Mapping[str, Any]  # by path; unset ones are absent
    unreadable: Mapping[str, str]  # by path: WSDL name of the fault

    @property
    def moref(self) -> str:
        return str(self.object._GetMoId())


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was read of one object, as XML."""

    kind: str  # WSDL name, such as `VirtualMachine`
    moref: str
    values: Mapping[str, Element]
    unreadable: Mapping[str, str]

    def text(self, path: str) -> str:
        """Empty when unset; also the id of a managed object."""
        element = self.values.get(path)
        return "" if element is None else element.text or ""

    def flag(self, path: str) -> bool:
        """False when unset."""
        return self.text(path) in ("true", "1")


def fetch(
    session: Session, what: str, objects: Sequence[Any], wanted: Sequence[Wanted]
) -> list[Fetched]:
    """Read `wanted` of these managed objects in one pass.

    Raises:
        ObjectGoneError: one of them does not exist.
        VsphereError: the call failed.
    """
    specs = [_Collector.ObjectSpec(obj=item, skip=False) for item in objects]
    return session.read(what, _fetch_pages, session, specs, wanted)


def fetch_one(session: Session, what: str, item: Any, paths: Sequence[str]) -> Fetched:
    """`fetch` of one object."""
    found = fetch(session, what, [item], [Wanted(kind=type(item), paths=tuple(paths))])
    return found[0] if found else Fetched(object=item, values={}, unreadable={})


def fetch_all(
    session: Session, what: str, wanted: Sequence[Wanted], container: Any | None = None
) -> list[Fetched]:
    """Read `wanted` of every object of those types below `container` (default: everywhere)."""

    def run() -> list[Fetched]:
        with _everything_below(session, container, wanted) as specs:
            return _fetch_pages(session, specs, wanted)

    return session.read(what, run)


def read_all(
    session: Session, what: str, wanted: Sequence[Wanted], take: Callable[[Record], _R]
) -> list[_R]:
    """Read `wanted` of every object of those types in the inventory, in one pass.

    Args:
        take: called once per object, while its page is in memory; keep what it returns, not the
            record. Called again for all when the session was lost half-way.
    """

    def run() -> list[_R]:
        with _everything_below(session, None, wanted) as specs:
            return [take(record) for record in _record_pages(session, specs, wanted)]

    return session.read(what, run)


def read_some(
    session: Session,
    what: str,
    objects: Sequence[Any],
    wanted: Sequence[Wanted],
    take: Callable[[Record], _R],
) -> list[_R]:
    """`read_all` of these managed objects.

    Raises:
        ObjectGoneError: one of them does not exist.
    """
    specs = [_Collector.ObjectSpec(obj=item, skip=False) for item in objects]
    return session.read(
        what, lambda: [take(record) for record in _record_pages(session, specs, wanted)]
    )


@contextmanager
def _everything_below(
    session: Session, container: Any | None, wanted: Sequence[Wanted]
) -> Iterator[list[Any]]:
    view = session.content.viewManager.CreateContainerView(
        container or session.content.rootFolder, [each.kind for each in wanted], True
    )
    path = _Collector.TraversalSpec(
        name="view", type=vim.view.ContainerView, path="view", skip=False
    )
    try:
        yield [_Collector.ObjectSpec(obj=view, skip=True, selectSet=[path])]
    finally:
        with suppress(VsphereError, vmodl.MethodFault, OSError):  # it dies with the session anyway
            view.DestroyView()


def _filters(specs: Sequence[Any], wanted: Sequence[Wanted]) -> list[Any]:
    properties = [
        _Collector.PropertySpec(type=each.kind, pathSet=list(each.paths), all=False)
        for each in wanted
    ]
    return [_Collector.FilterSpec(objectSet=list(specs), propSet=properties)]


def _options() -> Any:
    return _Collector.RetrieveOptions(maxObjects=PAGE_OBJECTS)


def _fetch_pages(session: Session, specs: Sequence[Any], wanted: Sequence[Wanted]) -> list[Fetched]:
    collector = session.content.propertyCollector
    found: list[Fetched] = []
    page = collector.RetrievePropertiesEx(_filters(specs, wanted), _options())
    while page is not None:
        found += map(_fetched, page.objects)
        if not page.token:
            break
        page = collector.ContinueRetrievePropertiesEx(page.token)
    return found


def _fetched(content: Any) -> Fetched:
    unreadable = {item.path: str(item.fault._wsdlName) for item in content.missingSet}
    _check_session(unreadable)
    return Fetched(
        object=content.obj,
        values={item.name: item.val for item in content.propSet},
        unreadable=unreadable,
    )


def _check_session(unreadable: Mapping[str, str]) -> None:
    """A lost session does not fail the call: the server calls each property unreadable instead."""
    if any(name.endswith("NotAuthenticated") for name in unreadable.values()):
        raise SessionLostError("the server no longer knows our session")


def _record_pages(
    session: Session, specs: Sequence[Any], wanted: Sequence[Wanted]
) -> Iterator[Record]:
    collector = session.content.propertyCollector
    page = soap_tree.invoke(
        collector, _Collector.RetrievePropertiesEx, [_filters(specs, wanted), _options()]
    )
    while page is not None:
        yield from map(_record, page.iterfind(f"{VIM}objects"))
        token = page.findtext(f"{VIM}token")
        if not token:
            break
        page = soap_tree.invoke(collector, _Collector.ContinueRetrievePropertiesEx, [token])


def _record(content: Element) -> Record:
    values: dict[str, Element] = {}
    for item in content.iterfind(f"{VIM}propSet"):
        value = item.find(f"{VIM}val")
        if value is not None:
            values[item.findtext(f"{VIM}name", "")] = value
    unreadable: dict[str, str] = {}
    for item in content.iterfind(f"{VIM}missingSet"):
        fault = item.find(f"{VIM}fault/{VIM}fault")
        name = "" if fault is None else type_of(fault)
        unreadable[item.findtext(f"{VIM}path", "")] = name
    _check_session(unreadable)
    reference = content.find(f"{VIM}obj")
    if reference is None:
        raise ProtocolError("the property collector answered without the object")
    return Record(
        kind=reference.get("type", ""),
        moref=reference.text or "",
        values=values,
        unreadable=unreadable,
    )
