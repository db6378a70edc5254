"""EventHistoryCollector: a session's cursor over the events that a filter picks.

It begins after the newest event; `Rewind` puts it before the oldest. What has been dropped from
the log is passed over. Thread model: one caller at a time, as for any cursor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, computed, method
from lab.vcenter.property_selection import invalid_argument

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter

PAGE_LIMIT = 1000


class EventHistoryCollector(LabObject):
    vim_type = vim.event.EventHistoryCollector
    moid_prefix = "session[events]"

    def __init__(self, vcenter: LabVcenter, spec: Any, read: Callable[[], list[Any]]) -> None:
        """`read` returns the events that fit now, oldest first."""
        super().__init__(vcenter)
        self._read = read
        self._page = 10
        self._last_key = 0
        self.set(filter=spec)
        self._to_end()

    def _to_end(self) -> None:
        events = self._read()
        self._last_key = events[-1].key if events else 0

    @computed("latestPage")
    def _latest_page(self, _call: Call | None) -> Any:
        return self._read()[-self._page :][::-1]

    @method("ReadNextEvents", privilege="System.View")
    def read_next(self, _call: Call, count: int) -> Any:
        found = [event for event in self._read() if event.key > self._last_key][: _checked(count)]
        if found:
            self._last_key = found[-1].key
        return found

    @method("ReadPreviousEvents", privilege="System.View")
    def read_previous(self, _call: Call, count: int) -> Any:
        found = [event for event in self._read() if event.key <= self._last_key]
        found = found[-_checked(count) :][::-1]
        if found:
            self._last_key = found[-1].key - 1
        return found

    @method("SetCollectorPageSize", privilege="System.View")
    def set_page_size(self, _call: Call, count: int) -> None:
        self._page = _checked(count)

    @method("RewindCollector", privilege="System.View")
    def rewind(self, _call: Call) -> None:
        self._last_key = 0

    @method("ResetCollector", privilege="System.View")
    def reset(self, _call: Call) -> None:
        self._to_end()

    @method("DestroyCollector", privilege="System.View")
    def destroy(self, _call: Call) -> None:
        self.unregister()


def _checked(count: int) -> int:
    if not 0 < count <= PAGE_LIMIT:
        raise invalid_argument("maxCount", f"maxCount must be 1 to {PAGE_LIMIT}.")
    return count
