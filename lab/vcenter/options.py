"""OptionManager: advanced settings of the vCenter or of a host, by dotted key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, ManagedEntity, computed, method

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter

_HOST_OPTIONS: dict[str, Any] = {
    "NFS.MaxVolumes": 32,
    "NFS41.MaxVolumes": 32,
    "NFS.HeartbeatTimeout": 5,
    "NFS.HeartbeatFrequency": 12,
    "NFS.HeartbeatMaxFailures": 10,
    "Net.TcpipHeapSize": 0,
    "Net.TcpipHeapMax": 1536,
}
_VCENTER_OPTIONS: dict[str, Any] = {
    "VirtualCenter.VimPasswordExpirationInDays": 30,
    "config.nfc.useSSL": "true",
}


class OptionManager(LabObject):
    vim_type = vim.option.OptionManager
    moid_prefix = "EsxHostAdvSettings"

    def __init__(
        self, vcenter: LabVcenter, moid: str | None = None, guarded_by: ManagedEntity | None = None
    ) -> None:
        super().__init__(vcenter, moid)
        self._guard = guarded_by
        self._options = dict(_HOST_OPTIONS if guarded_by else _VCENTER_OPTIONS)

    def guarded_by(self) -> LabObject:
        return self._guard or self.vcenter.root_folder

    @computed("setting")
    def _setting(self, _call: Call | None) -> Any:
        return [vim.option.OptionValue(key=k, value=v) for k, v in sorted(self._options.items())]

    @method("QueryOptions")
    def query(self, _call: Call, name: str | None) -> Any:
        """All options, one, or those below a node that ends with a dot."""
        found = [
            vim.option.OptionValue(key=key, value=value)
            for key, value in sorted(self._options.items())
            if name is None or key == name or (name.endswith(".") and key.startswith(name))
        ]
        if not found:
            raise vim.fault.InvalidName(msg=f"There is no option {name}.", name=name or "")
        return found

    @method("UpdateOptions", privilege=None)
    def change(self, call: Call, changed: list[Any]) -> None:
        on_host = self._guard is not None
        call.require("Host.Config.AdvancedConfig" if on_host else "Global.Settings", self)
        for option in changed:
            if option.key not in self._options:
                raise vim.fault.InvalidName(
                    msg=f"There is no option {option.key}.", name=option.key
                )
        self._options.update({option.key: option.value for option in changed})
        self.touch()
