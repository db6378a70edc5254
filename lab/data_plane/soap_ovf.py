"""OvfManager: OVF descriptor in, import spec out.

What is wrong with the descriptor is told in the result's `error`, as the product does; only wrong
arguments are faults. Source: vSphere Web Services API, OvfManager.
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from lab.data_plane.import_spec import SpecOptions, build_config_spec, file_items
from lab.data_plane.ovf import OvfError, OvfPackage, parse_ovf
from lab.data_plane.ovf_properties import PropertyMappingError
from lab.vcenter.call import Call
from lab.vcenter.compute import ResourcePool
from lab.vcenter.datastores import Datastore
from lab.vcenter.managed_object import LabObject, computed, method
from lab.vcenter.networks import Network

_PROVISIONING = ("thin", "thick", "eagerZeroedThick", "")


class OvfManager(LabObject):
    vim_type = vim.OvfManager

    @computed("ovfImportOption")
    def _import_options(self, _call: Call | None) -> Any:
        return []

    @computed("ovfExportOption")
    def _export_options(self, _call: Call | None) -> Any:
        return []

    @method("ParseDescriptor")
    def parse_descriptor(self, _call: Call, descriptor: str, _params: Any) -> Any:
        result: Any = vim.OvfManager.ParseDescriptorResult
        try:
            package = parse_ovf(descriptor)
        except OvfError as error:
            return result(
                approximateDownloadSize=0,
                approximateFlatDeploymentSize=0,
                approximateSparseDeploymentSize=0,
                defaultEntityName="",
                virtualApp=False,
                error=[_fault(error)],
            )
        return result(
            network=[vim.OvfManager.NetworkInfo(name=n, description="") for n in package.networks],
            approximateDownloadSize=sum(f.size_bytes or 0 for f in package.files.values()),
            approximateFlatDeploymentSize=sum(d.capacity_bytes for d in package.disks.values()),
            approximateSparseDeploymentSize=0,
            defaultEntityName=package.name,
            virtualApp=False,
        )

    @method("CreateImportSpec")
    def create_import_spec(
        self, call: Call, descriptor: str, pool: Any, datastore: Any, params: Any
    ) -> Any:
        call.resolve(pool, ResourcePool)
        store = call.resolve(datastore, Datastore)
        provisioning = params.diskProvisioning or ""
        if provisioning not in _PROVISIONING:
            raise vmodl.fault.InvalidArgument(
                msg=f"Provisioning {provisioning!r} is not supported.",
                invalidProperty="cisp.diskProvisioning",
            )
        result: Any = vim.OvfManager.CreateImportSpecResult
        try:
            package = parse_ovf(descriptor)
            options = SpecOptions(
                name=params.entityName or package.name,
                datastore_name=store.name,
                thin=provisioning == "thin",
                eager=provisioning == "eagerZeroedThick",
                networks=_mapped(call, package, params),
                properties={each.key: each.value for each in params.propertyMapping or []},
            )
            spec = build_config_spec(package, options)
        except OvfError as error:
            return result(error=[_fault(error)])
        except PropertyMappingError as error:
            raise vmodl.fault.InvalidArgument(
                msg=str(error), invalidProperty="cisp.propertyMapping"
            ) from error
        return result(
            importSpec=vim.vm.VmImportSpec(configSpec=spec),
            fileItem=file_items(package, spec),
            warning=[_fault(OvfError("OvfUnsupportedSection", w)) for w in package.warnings],
        )


def _mapped(call: Call, package: OvfPackage, params: Any) -> dict[str, str]:
    """Network names of the descriptor to those of the inventory."""
    mapped = {}
    for mapping in params.networkMapping or []:
        if mapping.name not in package.networks:
            raise OvfError("OvfNoHostNic", f"there is no network {mapping.name!r}")
        mapped[mapping.name] = call.resolve(mapping.network, Network).name
    return mapped


_FAULT_BASE = {info.name for info in vim.fault.OvfFault._GetPropertyList()}


def _fault(error: OvfError) -> Any:
    """The named fault; fields that the schema requires and nobody knows are empty."""
    kind = getattr(vim.fault, error.fault)
    fields = {
        info.name: 0 if info.type is int else ""
        for info in kind._GetPropertyList()
        if info.name not in _FAULT_BASE
    }
    return kind(msg=str(error), **fields)
