"""ESXi hosts of the practice vCenter: datastores, locks and virtual machines that run in QEMU.

Nothing here speaks SOAP; `lab.vcenter` binds it to managed objects.
"""
