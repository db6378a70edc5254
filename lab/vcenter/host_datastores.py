"""HostDatastoreSystem: NFS exports mounted on one host, and unmounted.

The same remote host and path, byte for byte, on a second host is the same Datastore; any other text
makes a second one, whose name gets a number when it is taken, as in vCenter. A datastore is given
up with its last host. Source: vSphere Web Services API, HostDatastoreSystem; design notes on
vSphere, section 5, steps 1 and 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import GetVmodlType

from lab.esx.nas_datastore import NasDatastore
from lab.esx.nfs_mount import Remote
from lab.vcenter.call import Call
from lab.vcenter.datastores import Datastore
from lab.vcenter.folders import Datacenter
from lab.vcenter.host_faults import host_faults
from lab.vcenter.managed_object import LabObject, computed, method
from lab.vcenter.tasks import TaskControl

if TYPE_CHECKING:
    from lab.esx.vm_library import VmLibrary
    from lab.vcenter.hosts import HostSystem
    from lab.vcenter.lab_vcenter import LabVcenter

_RESULTS: Any = GetVmodlType("vim.host.DatastoreSystem.DatastoreResult[]")
_VOLUMES_MAX = 32  # NFS.MaxVolumes
_NAME_CHARS_MAX = 42


class HostDatastoreSystem(LabObject):
    vim_type = vim.host.DatastoreSystem
    moid_prefix = "datastoreSystem"

    def __init__(self, vcenter: LabVcenter, host: HostSystem) -> None:
        super().__init__(vcenter)
        self.host = host
        self.set(
            capabilities=vim.host.DatastoreSystem.Capabilities(
                nfsMountCreationRequired=True,
                nfsMountCreationSupported=True,
                localDatastoreSupported=False,
                vmfsExtentExpansionSupported=False,
            )
        )

    def guarded_by(self) -> LabObject:
        return self.host

    @computed("datastore")
    def _datastore(self, _call: Call | None) -> Any:
        return [datastore.ref for datastore in self.host.datastores]

    @method("CreateNasDatastore")
    def create_nas(self, _call: Call, spec: Any) -> Any:
        remote, name, read_only = _checked(spec)
        home, library = self._home()
        with home.mounting:
            self._refuse_mounted(remote, name)
            known = _known(home, remote)
            if known is None:
                store = NasDatastore(_free_name(home, name), remote)
            else:
                assert isinstance(known.store, NasDatastore)
                store = known.store
            with host_faults():
                store.mount_on(
                    self.host.moid,
                    source=self.host.vmkernel_address,
                    timings=library.site.nas,
                    read_only=read_only,
                )
            if known is None:
                library.site.datastores.add(store)
                known = Datastore(self.vcenter, store.name, home, store=store)
            known.mount(self.host)
        return known.ref

    @method("RemoveDatastore")
    def remove_datastore(self, call: Call, ref: Any) -> None:
        self._remove(call.resolve(ref, Datastore))

    @method("RemoveDatastoreEx_Task")
    def remove_datastores(self, call: Call, refs: list[Any]) -> Any:
        datastores = [call.resolve(ref, Datastore) for ref in refs]

        def work(_task: TaskControl) -> Any:
            results: Any = _RESULTS()
            results.extend(self._removed(datastore) for datastore in datastores)
            return results

        return call.start_task(self.host, work)

    def _removed(self, datastore: Datastore) -> Any:
        fault = None
        try:
            self._remove(datastore)
        except vmodl.MethodFault as error:
            fault = error
        return vim.host.DatastoreSystem.DatastoreResult(key=datastore.ref, fault=fault)

    def _remove(self, datastore: Datastore) -> None:
        home, _library = self._home()
        with home.mounting:
            if datastore not in self.host.datastores:
                raise vim.fault.NotFound(msg=f"{self.host.name} has no {datastore.name}.")
            datastore.unmount_from(self.host)

    def _home(self) -> tuple[Datacenter, VmLibrary]:
        home = self.host.datacenter()
        if not isinstance(home, Datacenter) or home.library is None:
            raise vmodl.fault.NotSupported(msg="This host cannot mount anything.")
        return home, home.library

    def _refuse_mounted(self, remote: Remote, name: str) -> None:
        mounted = [one for one in self.host.datastores if isinstance(one.store, NasDatastore)]
        for one in mounted:
            if one.remote == remote:
                raise vim.fault.AlreadyExists(
                    msg=f"{remote.host}:{remote.path} is mounted as {one.name}.", name=one.name
                )
        for other in self.host.datastores:
            if other.name == name:
                raise vim.fault.DuplicateName(
                    msg=f"The name {name} exists.", name=name, object=other.ref
                )
        if len(mounted) >= _VOLUMES_MAX:
            raise vim.fault.NasConnectionLimitReached(
                msg="NFS has reached the maximum number of supported volumes.",
                name=name,
                remoteHost=remote.host,
                remotePath=remote.path,
            )


def _checked(spec: Any) -> tuple[Remote, str, bool]:
    """Raises InvalidArgument, InvalidName, NotSupported."""
    kind = spec.type or "NFS"
    if kind != "NFS":
        raise vmodl.fault.NotSupported(msg=f"{kind} is not supported by this host.")
    if spec.accessMode not in ("readWrite", "readOnly"):
        raise _invalid("accessMode")
    if not spec.remoteHost or spec.remoteHost != spec.remoteHost.strip():
        raise _invalid("remoteHost")
    if not (spec.remotePath or "").startswith("/"):
        raise _invalid("remotePath")
    name = spec.localPath or ""
    if not 0 < len(name) <= _NAME_CHARS_MAX or set(name) & set("[]/\\%"):
        raise vim.fault.InvalidName(msg=f"{name!r} cannot be a datastore's name.", name=name)
    remote = Remote(host=spec.remoteHost, path=spec.remotePath)
    return remote, name, spec.accessMode == "readOnly"


def _invalid(name: str) -> BaseException:
    fault: BaseException = vmodl.fault.InvalidArgument(
        msg="The specification is invalid.", invalidProperty=f"spec.{name}"
    )
    return fault


def _known(home: Datacenter, remote: Remote) -> Datastore | None:
    every = home.below(home.datastore_folder, Datastore)
    return next((one for one in every if isinstance(one, Datastore) and one.remote == remote), None)


def _free_name(home: Datacenter, name: str) -> str:
    """Another host's datastore may have the name; vCenter then numbers the newcomer."""
    taken = {one.name for one in home.below(home.datastore_folder, Datastore)}
    free, number = name, 0
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free
