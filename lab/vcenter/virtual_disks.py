"""VirtualDiskManager: virtual disks as files, apart from any machine."""

from __future__ import annotations

from pyVmomi import vim

from lab.vcenter.managed_object import LabObject


class VirtualDiskManager(LabObject):
    """None of its methods is served (MethodNotFound); clients expect the object to be there."""

    vim_type = vim.VirtualDiskManager
