"""ServiceInstance: where every client begins, and what this vCenter says of itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.vcenter.api_versions import API_VERSION
from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, computed, method

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter

VERSION = "8.0.3"
BUILD = "24022515"


class ServiceInstance(LabObject):
    """`managers` maps property names of ServiceContent to the objects that are there."""

    vim_type = vim.ServiceInstance

    def __init__(self, vcenter: LabVcenter, managers: dict[str, LabObject]) -> None:
        super().__init__(vcenter, "ServiceInstance")
        self._managers = managers

    @computed("content")
    def content(self, _call: Call | None) -> Any:
        return vim.ServiceInstanceContent(
            about=self.about(), **{name: thing.ref for name, thing in self._managers.items()}
        )

    def about(self) -> Any:
        return vim.AboutInfo(
            name="VMware vCenter Server",
            fullName=f"VMware vCenter Server {VERSION} build-{BUILD}",
            vendor="VMware, Inc.",
            version=VERSION,
            build=BUILD,
            localeVersion="INTL",
            localeBuild="000",
            osType="linux-x64",
            productLineId="vpx",
            apiType="VirtualCenter",
            apiVersion=API_VERSION,
            instanceUuid=self.vcenter.instance_uuid,
            licenseProductName="VMware VirtualCenter Server",
            licenseProductVersion="8.0",
        )

    @computed("serverClock")
    def _clock(self, _call: Call | None) -> Any:
        return datetime.now(UTC)

    @computed("capability")
    def _capability(self, _call: Call | None) -> Any:
        return vim.Capability(provisioningSupported=True, multiHostSupported=True)

    @method("RetrieveServiceContent")
    def retrieve_content(self, call: Call) -> Any:
        return self.content(call)

    @method("CurrentTime")
    def current_time(self, _call: Call) -> datetime:
        return datetime.now(UTC)
