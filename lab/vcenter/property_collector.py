"""PropertyCollector: reads of many properties of many objects, in pages, and waiting for changes.

The collector named in ServiceContent is one object that every session uses; what a session does
with it (filters, open pages, its last version) is its Conversation. CreatePropertyCollector makes
a collector that belongs to the session.

Thread model: conversations are guarded by the registry's lock; reads run without it.
"""

from __future__ import annotations

import secrets
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyVmomi import vmodl

from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, computed, method
from lab.vcenter.property_content import Content, ContentList, ContentPage, read_content, write_ref
from lab.vcenter.property_filter import PropertyFilter, Update
from lab.vcenter.property_selection import Selected, Selection, invalid_argument
from lab.vcenter.sessions import Session
from lab.vcenter.soap_encode import Encoder, SelfWriting, Write

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter

UPDATES_PER_REPLY = 1000
_OPEN_PAGES = 64
_POLL_S = 1.0  # how soon a waiter notices that its session has expired


@dataclass(frozen=True, slots=True)
class UpdateSet(SelfWriting):
    version: str
    filters: tuple[tuple[Any, tuple[Update, ...]], ...]
    truncated: bool

    def write_xml(self, write: Write, encode: Encoder) -> None:
        write(f"<returnval><version>{self.version}</version>")
        for ref, updates in self.filters:
            write("<filterSet>")
            write_ref(write, "filter", ref)
            for update in updates:
                update.write(write, encode)
            write("</filterSet>")
        if self.truncated:
            write("<truncated>true</truncated>")
        write("</returnval>")


class Conversation:
    """One session's use of one collector."""

    def __init__(self) -> None:
        self.filters: list[PropertyFilter] = []
        self.pages: dict[str, list[Selected]] = {}
        self.number = 0  # of the last version given out
        self.last: UpdateSet | None = None
        self.waits = 0  # a wait that finds a newer one, or a cancel, ends

    def drop(self, gone: PropertyFilter) -> None:
        if gone in self.filters:
            self.filters.remove(gone)

    def close(self) -> None:
        for held in list(self.filters):
            held.unregister()
        self.filters.clear()
        self.pages.clear()
        self.waits += 1


class PropertyCollector(LabObject):
    vim_type = vmodl.query.PropertyCollector
    moid_prefix = "session[collector]"

    def __init__(self, vcenter: LabVcenter, moid: str | None = None) -> None:
        super().__init__(vcenter, moid)
        self._conversations: weakref.WeakKeyDictionary[Session, Conversation] = (
            weakref.WeakKeyDictionary()
        )

    def _conversation(self, call: Call) -> Conversation:
        session = call.authenticated()
        with self.vcenter.registry.lock:
            return self._conversations.setdefault(session, Conversation())

    def end_session(self, session: Session) -> None:
        with self.vcenter.registry.lock:
            conversation = self._conversations.pop(session, None)
            if conversation is not None:
                conversation.close()

    @computed("filter")
    def _filter(self, call: Call | None) -> Any:
        if call is None or call.session is None:
            return []
        return [held.ref for held in self._conversation(call).filters]

    @method("RetrieveProperties")
    def retrieve_properties(self, call: Call, specs: Any) -> ContentList:
        return ContentList(tuple(_read(_select(specs, call), call)))

    @method("RetrievePropertiesEx")
    def retrieve_properties_ex(self, call: Call, specs: Any, options: Any) -> Any:
        limit = self.vcenter.page_objects
        if options.maxObjects is not None:
            if options.maxObjects <= 0:
                raise invalid_argument("options.maxObjects", "maxObjects must be positive.")
            limit = min(limit, options.maxObjects)
        selected = _select(specs, call)
        return self._page(selected, limit, call) if selected else None

    @method("ContinueRetrievePropertiesEx")
    def continue_retrieve(self, call: Call, token: str) -> ContentPage:
        limit, rest = self._take_page(call, token)
        return self._page(rest, limit, call)

    @method("CancelRetrievePropertiesEx")
    def cancel_retrieve(self, call: Call, token: str) -> None:
        self._take_page(call, token)

    def _take_page(self, call: Call, token: str) -> tuple[int, list[Selected]]:
        rest = self._conversation(call).pages.pop(token, None)
        if rest is None:
            raise invalid_argument("token", "The token is not valid.")
        return int(token.partition("-")[0]), rest

    def _page(self, selected: list[Selected], limit: int, call: Call) -> ContentPage:
        page, rest = selected[:limit], selected[limit:]
        token = None
        if rest:
            token = f"{limit}-{secrets.token_hex(8)}"
            pages = self._conversation(call).pages
            while len(pages) >= _OPEN_PAGES:
                pages.pop(next(iter(pages)))
            pages[token] = rest
        return ContentPage(tuple(_read(page, call)), token)

    @method("CreatePropertyCollector")
    def create_collector(self, call: Call) -> Any:
        collector = PropertyCollector(self.vcenter)
        collector.owner = call.session
        return collector.ref

    @method("DestroyPropertyCollector")
    def destroy(self, call: Call) -> None:
        if self.owner is None:
            raise vmodl.fault.NotSupported(msg="The service's own collector stays.")
        self.end_session(call.authenticated())
        self.unregister()

    @method("CreateFilter")
    def create_filter(self, call: Call, spec: Any, partial_updates: bool) -> Any:
        conversation = self._conversation(call)
        made = PropertyFilter(self.vcenter, conversation, spec, partial_updates)
        made.owner = call.session
        with self.vcenter.registry.changed:
            conversation.filters.append(made)
            self.vcenter.registry.changed.notify_all()
        return made.ref

    @method("WaitForUpdatesEx")
    def wait_for_updates_ex(self, call: Call, version: str | None, options: Any) -> Any:
        limit, wait_s = UPDATES_PER_REPLY, None
        if options is not None:
            if options.maxObjectUpdates is not None:
                if options.maxObjectUpdates <= 0:
                    raise invalid_argument("options.maxObjectUpdates", "It must be positive.")
                limit = min(limit, options.maxObjectUpdates)
            wait_s = options.maxWaitSeconds
            if wait_s is not None and wait_s < 0:
                raise invalid_argument("options.maxWaitSeconds", "It must not be negative.")
        return self._wait(call, version or "", limit, wait_s)

    @method("WaitForUpdates")
    def wait_for_updates(self, call: Call, version: str | None) -> Any:
        return self._wait(call, version or "", UPDATES_PER_REPLY, None)

    @method("CheckForUpdates")
    def check_for_updates(self, call: Call, version: str | None) -> Any:
        return self._wait(call, version or "", UPDATES_PER_REPLY, 0)

    @method("CancelWaitForUpdates")
    def cancel_wait(self, call: Call) -> None:
        with self.vcenter.registry.changed:
            self._conversation(call).waits += 1
            self.vcenter.registry.changed.notify_all()

    def _wait(self, call: Call, version: str, limit: int, wait_s: int | None) -> UpdateSet | None:
        conversation = self._conversation(call)
        registry = self.vcenter.registry
        with registry.lock:
            conversation.waits += 1
            mine = conversation.waits
        again = self._accept_version(conversation, version)
        if again is not None:
            return again
        deadline = None if wait_s is None else time.monotonic() + wait_s
        while True:
            seen = registry.version
            found = _collect(conversation, call, limit)
            if found is not None:
                return found
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            with registry.changed:
                registry.changed.wait_for(
                    lambda: registry.version != seen or conversation.waits != mine,  # noqa: B023
                    _POLL_S if left is None else min(left, _POLL_S),
                )
            self._still_wanted(call, conversation, mine)

    def _accept_version(self, conversation: Conversation, version: str) -> UpdateSet | None:
        """Return the last reply if the client asks for it a second time."""
        if version == "":
            for held in conversation.filters:
                held.restart()
            return None
        if version == str(conversation.number):
            return None
        if conversation.last is not None and version == str(conversation.number - 1):
            return conversation.last
        raise vmodl.query.InvalidCollectorVersion(msg="The collector version is not valid.")

    def _still_wanted(self, call: Call, conversation: Conversation, mine: int) -> None:
        session = call.authenticated()
        self.vcenter.sessions.expire()
        if conversation.waits != mine or not self.registered:
            raise vmodl.fault.RequestCanceled(msg="The request was canceled.")
        if not self.vcenter.sessions.alive(session):
            raise vmodl.fault.RequestCanceled(msg="The session has ended.")


def _collect(conversation: Conversation, call: Call, limit: int) -> UpdateSet | None:
    """Return what the filters have to tell, or None."""
    told: list[tuple[Any, tuple[Update, ...]]] = []
    truncated = False
    for held in list(conversation.filters):
        if limit <= 0:
            truncated = True
            break
        updates, more = held.updates(call, limit)
        limit -= len(updates)
        truncated = truncated or more
        if updates:
            told.append((held.ref, tuple(updates)))
    if not told:
        return None
    conversation.number += 1
    conversation.last = UpdateSet(str(conversation.number), tuple(told), truncated)
    return conversation.last


def _select(specs: Any, call: Call) -> list[Selected]:
    found: list[Selected] = []
    for spec in specs:
        found.extend(Selection(spec).evaluate(call))
    return found


def _read(selected: Sequence[Selected], call: Call) -> list[Content]:
    """Objects that went away since they were selected are left out."""
    return [
        read_content(entry.thing, entry.paths, call) for entry in selected if entry.thing.registered
    ]
