"""FileManager: folders and files of datastores, by datastore path.

Every change needs Datastore.FileManagement on the datastore; a file that a machine or a transfer
has open answers FileLocked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from lab.esx.datastore_path import DatastorePath
from lab.esx.file_locks import LockMode
from lab.esx.files import Files
from lab.vcenter.call import Call
from lab.vcenter.datastores import Datastore
from lab.vcenter.folders import Datacenter
from lab.vcenter.host_faults import host_faults
from lab.vcenter.managed_object import LabObject, ManagedEntity, method
from lab.vcenter.tasks import TaskControl

_COPY_BYTES = 1 << 20
_HOLDER = "file manager"


@dataclass(frozen=True, slots=True)
class Place:
    datastore: Datastore
    path: DatastorePath

    @property
    def files(self) -> Files:
        return self.datastore.files


class FileManager(LabObject):
    vim_type = vim.FileManager

    @method("MakeDirectory")
    def make_directory(
        self, call: Call, name: str, datacenter: Any, with_parents: bool | None
    ) -> None:
        place = self._place(call, name, datacenter)
        with host_faults():
            if with_parents:
                parts = place.path.path.split("/")
                for count in range(1, len(parts)):
                    parent = "/".join(parts[:count])
                    if place.files.stat(parent) is None:
                        place.files.make_folder(parent)
            place.files.make_folder(place.path.path)

    @method("DeleteDatastoreFile_Task")
    def delete(self, call: Call, name: str, datacenter: Any) -> Any:
        place = self._place(call, name, datacenter)

        def work(_task: TaskControl) -> None:
            with host_faults():
                self._delete(place)

        return call.start_task(place.datastore, work)

    @method("MoveDatastoreFile_Task")
    def move(
        self, call: Call, source: str, home: Any, target: str, there: Any, force: bool | None
    ) -> Any:
        before = self._place(call, source, home)
        after = self._place(call, target, there or home)

        def work(task: TaskControl) -> None:
            with host_faults(), self._held(before), self._held(after):
                self._make_room(after, force)
                if before.datastore is after.datastore:
                    before.files.rename(before.path.path, after.path.path)
                else:
                    _copy(before, after, task)
                    before.files.delete(before.path.path)

        return call.start_task(before.datastore, work)

    @method("CopyDatastoreFile_Task")
    def copy(
        self, call: Call, source: str, home: Any, target: str, there: Any, force: bool | None
    ) -> Any:
        before = self._place(call, source, home)
        after = self._place(call, target, there or home)

        def work(task: TaskControl) -> None:
            with host_faults(), self._held(after):
                self._make_room(after, force)
                _copy(before, after, task)

        return call.start_task(before.datastore, work)

    def _place(self, call: Call, name: str, datacenter: Any) -> Place:
        with host_faults():
            path = DatastorePath.parse(name)
        if datacenter is None:
            raise vmodl.fault.InvalidArgument(
                msg="A datastore path needs a datacenter.", invalidProperty="datacenter"
            )
        datastore = datastore_named(call.resolve(datacenter, Datacenter), path.datastore)
        call.require("Datastore.FileManagement", datastore)
        if not path.path:
            raise vim.fault.InvalidDatastorePath(msg=f"{name} names no file.", datastorePath=name)
        return Place(datastore, path)

    def _held(self, place: Place) -> Any:
        return self.vcenter.file_locks.held(_HOLDER, [(place.path, LockMode.EXCLUSIVE)])

    def _make_room(self, place: Place, force: bool | None) -> None:
        if place.files.stat(place.path.path) is None:
            return
        if not force:
            raise vim.fault.FileAlreadyExists(
                msg=f"File {place.path} already exists", file=str(place.path)
            )
        place.files.delete(place.path.path)

    def _delete(self, place: Place) -> None:
        entry = place.files.stat(place.path.path)
        if entry is None:
            raise vim.fault.FileNotFound(
                msg=f"File {place.path} was not found", file=str(place.path)
            )
        if entry.is_folder:
            for inner in place.files.list(place.path.path):
                self._delete(Place(place.datastore, place.path.child(inner.name)))
            place.files.delete(place.path.path)
            return
        with self._held(place):
            place.files.delete(place.path.path)


def datastore_named(datacenter: Datacenter, name: str) -> Datastore:
    """Raises InvalidDatastore, InaccessibleDatastore."""
    for datastore in datacenter.below(datacenter.datastore_folder, ManagedEntity):
        if isinstance(datastore, Datastore) and datastore.name == name:
            datastore.check_accessible()
            return datastore
    raise vim.fault.InvalidDatastore(msg=f"There is no datastore {name}.", name=name)


def _copy(before: Place, after: Place, task: TaskControl) -> None:
    entry = before.files.stat(before.path.path)
    if entry is None or entry.is_folder:
        raise vim.fault.FileNotFound(msg=f"File {before.path} was not found", file=str(before.path))
    after.files.create(after.path.path, entry.size_bytes)
    for start, length in before.files.data_extents(before.path.path):
        for offset in range(start, start + length, _COPY_BYTES):
            size = min(_COPY_BYTES, start + length - offset)
            data = before.files.read_at(before.path.path, offset, size)
            after.files.write_at(after.path.path, offset, data)
        task.progress(100 * (start + length) // max(entry.size_bytes, 1))
