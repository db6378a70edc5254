"""The OVF descriptor: the virtual hardware, and the properties that an administrator is asked for.

Hardware version 13 (ESXi 6.5) or newer takes it. The data disk is empty, yet comes as a file of a
few kilobytes: not every importer can make a disk without one (vcsim 0.55 ends when it meets one).
Spare PVSCSI controllers are for disks that are attached while VMs are backed up.
Source: DMTF DSP0243 1.1; design notes on vSphere, section 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from appliance.base.units import GIB

DATA_BYTES = 200 * GIB
_CPUS, _MEMORY_MIB = 4, 8192
_DISKS = ("system", "data")
_STREAM = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
_VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
_OVF = "http://schemas.dmtf.org/ovf/envelope/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Property:
    key: str
    label: str
    description: str
    category: str = "Network"
    value: str = ""
    password: bool = False


PROPERTIES = (
    Property(key="hostname", label="Host name", description="Fully qualified.", value="holdfast"),
    Property(
        key="ipv4_address",
        label="IPv4 address",
        description="dhcp, none, or an address with its prefix length: 192.0.2.10/24.",
        value="dhcp",
    ),
    Property(key="ipv4_gateway", label="IPv4 gateway", description="For a static address."),
    Property(
        key="ipv6_address",
        label="IPv6 address",
        description="auto, none, or an address with its prefix length: 2001:db8::10/64.",
        value="auto",
    ),
    Property(key="ipv6_gateway", label="IPv6 gateway", description="For a static address."),
    Property(key="dns", label="DNS servers", description="Addresses, separated by commas."),
    Property(key="search_domain", label="DNS search domain", description="Empty for none."),
    Property(key="ntp", label="Time servers", description="Names or addresses, by commas."),
    Property(
        key="management_networks",
        label="Management networks",
        description="From where SSH and the web interface are reached; empty for everywhere.",
    ),
    Property(
        key="nfs_networks",
        label="NFS networks",
        description="Of the ESXi hosts, for instant recovery; empty for none.",
    ),
    Property(key="nbd_networks", label="NBD networks", description="Empty for none."),
    Property(key="iscsi_networks", label="iSCSI networks", description="Empty for none."),
    Property(
        key="time_zone",
        label="Time zone",
        description="Like Europe/Vienna.",
        category="System",
        value="Etc/UTC",
    ),
    Property(
        key="admin_email",
        label="Administrator's e-mail",
        description="Offered as recipient of the first e-mail channel.",
        category="System",
    ),
    Property(
        key="ssh_key",
        label="Public SSH key",
        description="Of the user admin; without one nobody logs in by SSH.",
        category="System",
    ),
    Property(
        key="repository_passphrase",
        label="Repository passphrase",
        description="Encrypts a new repository; empty for none. "
        "Remove it from the vApp options of the VM after the first start.",
        category="System",
        password=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedDisk:
    """A streamOptimized file of the package, and the disk in it."""

    file_name: str
    file_bytes: int
    disk_bytes: int


def descriptor(*, version: str, system: PackedDisk, data: PackedDisk) -> str:
    files, disks = "\n".join(_files(system, data)), "\n".join(_disks(system, data))
    items = "\n".join(_items())
    properties = "\n".join(_properties())
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="{_OVF}" xmlns:ovf="{_OVF}" xmlns:rasd="{_RASD}" xmlns:vssd="{_VSSD}" \
xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <References>
{files}
  </References>
  <DiskSection>
    <Info>Virtual disks</Info>
{disks}
  </DiskSection>
  <NetworkSection>
    <Info>Networks</Info>
    <Network ovf:name="Management">
      <Description>Reaches vCenter, the ESXi hosts and the administrators.</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id="holdfast">
    <Info>The Holdfast backup appliance</Info>
    <Name>Holdfast {escape(version)}</Name>
    <OperatingSystemSection ovf:id="96" vmw:osType="debian12_64Guest">
      <Info>Debian 12</Info>
      <Description>Debian GNU/Linux 12 (64-bit)</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection ovf:transport="com.vmware.guestInfo">
      <Info>Virtual hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>holdfast</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>
      </System>
{items}
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
      <vmw:Config ovf:required="false" vmw:key="tools.syncTimeWithHost" vmw:value="false"/>
      <vmw:ExtraConfig ovf:required="false" vmw:key="disk.EnableUUID" vmw:value="TRUE"/>
    </VirtualHardwareSection>
    <ProductSection ovf:required="false">
      <Info>What the appliance is told at its first start</Info>
      <Product>Holdfast</Product>
      <Vendor>Holdfast</Vendor>
      <Version>{escape(version)}</Version>
{properties}
    </ProductSection>
  </VirtualSystem>
</Envelope>
"""


def _files(*disks: PackedDisk) -> Iterator[str]:
    for name, disk in zip(_DISKS, disks, strict=True):
        yield (
            f'    <File ovf:id="{name}-file" ovf:href={quoteattr(disk.file_name)} '
            f'ovf:size="{disk.file_bytes}"/>'
        )


def _disks(*disks: PackedDisk) -> Iterator[str]:
    for name, disk in zip(_DISKS, disks, strict=True):
        yield (
            f'    <Disk ovf:diskId="{name}" ovf:fileRef="{name}-file" '
            f'ovf:capacity="{disk.disk_bytes // GIB}" '
            f'ovf:capacityAllocationUnits="byte * 2^30" ovf:format="{_STREAM}"/>'
        )


def _items() -> Iterator[str]:
    """Elements in the order of their names, which the schema asks for."""
    yield _item(
        1, 3, f"{_CPUS} virtual CPUs", AllocationUnits="hertz * 10^6", VirtualQuantity=_CPUS
    )
    yield _item(
        2,
        4,
        f"{_MEMORY_MIB} MB of memory",
        AllocationUnits="byte * 2^20",
        VirtualQuantity=_MEMORY_MIB,
    )
    for bus in range(4):
        yield _item(
            3 + bus, 6, f"SCSI controller {bus}", Address=bus, ResourceSubType="VirtualSCSI"
        )
    for unit, disk in enumerate(_DISKS):
        yield _item(
            10 + unit,
            17,
            f"Hard disk {unit + 1}",
            AddressOnParent=unit,
            HostResource=f"ovf:/disk/{disk}",
            Parent=3,
        )
    yield _item(
        20,
        10,
        "Network adapter 1",
        AddressOnParent=7,
        AutomaticAllocation="true",
        Connection="Management",
        ResourceSubType="VmxNet3",
    )


def _item(instance: int, resource: int, name: str, **more: object) -> str:
    fields = {"ElementName": name, "InstanceID": instance, "ResourceType": resource} | more
    lines = "".join(
        f"        <rasd:{key}>{escape(str(value))}</rasd:{key}>\n"
        for key, value in sorted(fields.items())
    )
    return f"      <Item>\n{lines}      </Item>"


def _properties() -> Iterator[str]:
    category = ""
    for each in PROPERTIES:
        if each.category != category:
            category = each.category
            yield f"      <Category>{category}</Category>"
        secret = ' ovf:password="true"' if each.password else ""
        yield (
            f"      <Property ovf:key={quoteattr(each.key)} "
            'ovf:type="string" ovf:userConfigurable="true" '
            f"ovf:value={quoteattr(each.value)}{secret}>\n"
            f"        <Label>{escape(each.label)}</Label>\n"
            f"        <Description>{escape(each.description)}</Description>\n"
            f"      </Property>"
        )
