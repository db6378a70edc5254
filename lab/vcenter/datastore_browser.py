"""DatastoreBrowser: listings of datastore folders, as tasks."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim
from pyVmomi.VmomiSupport import GetVmodlType

from lab.esx.datastore_path import DatastorePath
from lab.esx.files import FileEntry
from lab.vcenter.call import Call
from lab.vcenter.host_faults import host_faults
from lab.vcenter.managed_object import LabObject, computed, method
from lab.vcenter.tasks import TaskControl

if TYPE_CHECKING:
    from lab.vcenter.datastores import Datastore
    from lab.vcenter.lab_vcenter import LabVcenter

Browser = vim.host.DatastoreBrowser
_BY_SUFFIX: dict[str, tuple[Any, Any]] = {
    ".vmdk": (Browser.VmDiskQuery, Browser.VmDiskInfo),
    ".vmx": (Browser.VmConfigQuery, Browser.VmConfigInfo),
    ".vmtx": (Browser.TemplateVmConfigQuery, Browser.TemplateVmConfigInfo),
    ".vmsn": (Browser.VmSnapshotQuery, Browser.VmSnapshotInfo),
    ".nvram": (Browser.VmNvramQuery, Browser.VmNvramInfo),
    ".log": (Browser.VmLogQuery, Browser.VmLogInfo),
    ".iso": (Browser.IsoImageQuery, Browser.IsoImageInfo),
    ".flp": (Browser.FloppyImageQuery, Browser.FloppyImageInfo),
}
_RESULTS: Any = GetVmodlType("vim.host.DatastoreBrowser.SearchResults[]")
_EXTENTS = ("-flat.vmdk", "-delta.vmdk", "-sesparse.vmdk", "-ctk.vmdk")


class DatastoreBrowser(LabObject):
    vim_type = Browser
    moid_prefix = "datastoreBrowser"

    def __init__(self, vcenter: LabVcenter, datastore: Datastore) -> None:
        super().__init__(vcenter)
        self.home = datastore

    def guarded_by(self) -> LabObject:
        return self.home

    @computed("datastore")
    def _datastore(self, _call: Call | None) -> Any:
        return [self.home.ref]

    @method("SearchDatastore_Task", privilege="Datastore.Browse")
    def search(self, call: Call, path: str, spec: Any) -> Any:
        with host_faults():
            folder = self._folder(path)

        def work(_task: TaskControl) -> Any:
            with host_faults():
                return self._listing(folder, spec)

        return call.start_task(self.home, work)

    @method("SearchDatastoreSubFolders_Task", privilege="Datastore.Browse")
    def search_below(self, call: Call, path: str, spec: Any) -> Any:
        with host_faults():
            folder = self._folder(path)

        def work(task: TaskControl) -> Any:
            found: Any = _RESULTS()
            with host_faults():
                for place in self._folders(folder):
                    task.raise_if_cancelled()
                    found.append(self._listing(place, spec))
            return found

        return call.start_task(self.home, work, cancelable=True)

    def _folder(self, path: str) -> DatastorePath:
        folder = DatastorePath.parse(path)
        if folder.datastore != self.home.name:
            raise vim.fault.InvalidDatastore(msg=f"{path} is elsewhere.", name=folder.datastore)
        return folder

    def _folders(self, top: DatastorePath) -> Iterator[DatastorePath]:
        yield top
        for entry in self.home.files.list(top.path):
            if entry.is_folder:
                yield from self._folders(top.child(entry.name))

    def _listing(self, folder: DatastorePath, spec: Any) -> Any:
        files = self.home.files
        if folder.path and files.stat(folder.path) is None:
            raise vim.fault.FileNotFound(msg=f"File {folder} was not found", file=str(folder))
        entries = files.list(folder.path)
        infos = [_info(entry, spec) for entry in entries if _matches(entry, spec)]
        text = str(folder)
        return Browser.SearchResults(
            datastore=self.home.ref,
            folderPath=text if text.endswith(("/", "] ")) else f"{text}/",
            file=[info for info in infos if info is not None],
        )


def _matches(entry: FileEntry, spec: Any) -> bool:
    if spec is None or not spec.matchPattern:
        return True
    name = entry.name
    if spec.searchCaseInsensitive is False:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in spec.matchPattern)
    return any(fnmatch.fnmatchcase(name.lower(), p.lower()) for p in spec.matchPattern)


def _kind(entry: FileEntry) -> tuple[Any, Any]:
    """The query that asks for a file and the class that describes it."""
    if entry.is_folder:
        return Browser.FolderQuery, Browser.FolderInfo
    name = entry.name.lower()
    if name.endswith(_EXTENTS):
        return Browser.Query, Browser.FileInfo
    suffix = name[name.rfind(".") :] if "." in name else ""
    return _BY_SUFFIX.get(suffix, (Browser.Query, Browser.FileInfo))


def _info(entry: FileEntry, spec: Any) -> Any:
    """None for a file that no query asks for."""
    query, kind = _kind(entry)
    if (
        spec is not None
        and spec.query
        and not any(type(asked) in (query, Browser.Query) for asked in spec.query)
    ):
        return None
    details = spec.details if spec is not None else None
    if not (spec is not None and spec.query) and (details is None or not details.fileType):
        kind = Browser.FileInfo
    info = kind(path=entry.name)
    if details is not None:
        if details.fileSize:
            info.fileSize = entry.size_bytes
        if details.modification:
            info.modification = datetime.fromtimestamp(entry.modified_at_s, UTC)
        if details.fileOwner:
            info.owner = "root"
    return info
