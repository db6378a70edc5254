"""Every managed object by its id, and the count of changes that WaitForUpdatesEx waits on.

Thread model: any thread. `lock` guards additions, removals and stored values; `changed` is
notified after every one of them. Objects are found without the lock (a dict read).
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from pyVmomi import vmodl

if TYPE_CHECKING:
    from lab.vcenter.managed_object import LabObject

Kind = TypeVar("Kind", bound="LabObject")


def not_found(ref: Any) -> BaseException:
    """The fault for a reference that names nothing."""
    fault: BaseException = vmodl.fault.ManagedObjectNotFound(
        obj=ref,
        msg=f"The object '{ref._wsdlName}:{ref._moId}' has already been deleted or "
        "has not been completely created",
    )
    return fault


class Registry:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.version = 1
        self._objects: dict[str, LabObject] = {}
        self._numbers = itertools.count(1)

    def allocate(self, prefix: str) -> str:
        """Return a new id such as `vm-12`; a number is never used twice, whatever the prefix."""
        return f"{prefix}-{next(self._numbers)}"

    def add(self, thing: LabObject) -> None:
        with self.lock:
            if thing.moid in self._objects:
                raise ValueError(f"{thing.moid} exists")
            self._objects[thing.moid] = thing
            self.note_change(thing)

    def remove(self, thing: LabObject) -> None:
        """Idempotent."""
        with self.lock:
            if self._objects.pop(thing.moid, None) is not None:
                self.note_change(thing)

    def note_change(self, thing: LabObject) -> None:
        with self.lock:
            self.version += 1
            thing.changed_at = self.version
            self.changed.notify_all()

    def get(self, moid: str) -> LabObject | None:
        return self._objects.get(moid)

    def holds(self, thing: LabObject) -> bool:
        return self._objects.get(thing.moid) is thing

    def resolve(self, ref: Any, kind: type[Kind]) -> Kind:
        """Return the object a reference names. Raises ManagedObjectNotFound."""
        thing = self._objects.get(ref._moId)
        if (
            thing is None
            or not isinstance(thing, kind)
            or not issubclass(thing.vim_type, type(ref))
        ):
            raise not_found(ref)
        return thing

    def all(self, kind: type[Kind]) -> list[Kind]:
        """Every object of a class, oldest first."""
        with self.lock:
            return [thing for thing in self._objects.values() if isinstance(thing, kind)]
