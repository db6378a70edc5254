"""The OVA: descriptor, manifest and tar as importers want them."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from appliance.base.units import GIB
from appliance.machine.settings import MachineSettings, parse_properties
from lab.data_plane.import_spec import SpecOptions, build_config_spec
from lab.data_plane.ovf import parse_ovf
from ova.archive import write_ova
from ova.bill_of_materials import _python
from ova.descriptor import DATA_BYTES, PROPERTIES, PackedDisk, descriptor
from ova.disk_files import write_vmdk
from ova.packages import EXCLUDED, PACKAGES
from vmware.stream_optimized_reader import StreamOptimizedReader

_OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
TEXT = descriptor(
    version="1.0",
    system=PackedDisk(file_name="a.vmdk", file_bytes=1000, disk_bytes=8 * GIB),
    data=PackedDisk(file_name="b.vmdk", file_bytes=100, disk_bytes=DATA_BYTES),
)


def test_the_descriptor_is_what_our_vcenter_makes_a_vm_of() -> None:
    """Two disks on the first of four PVSCSI controllers, EFI, one network."""
    package = parse_ovf(TEXT)
    assert package.warnings == () and package.networks == ("Management",)
    assert package.disks["system"].capacity_bytes == 8 * GIB
    assert package.disks["data"].capacity_bytes == DATA_BYTES
    files = [package.disks[name].file for name in ("system", "data")]
    assert [file and file.href for file in files] == ["a.vmdk", "b.vmdk"]
    options = SpecOptions(name="a", datastore_name="ds", thin=True, eager=False, networks={})
    spec = build_config_spec(package, options)
    names = [type(change.device).__name__.rpartition(".")[2] for change in spec.deviceChange]
    assert names.count("ParaVirtualSCSIController") == 4
    assert names.count("VirtualDisk") == 2 and names.count("VirtualVmxnet3") == 1
    assert (spec.numCPUs, spec.memoryMB, spec.firmware) == (4, 8192, "efi")


def test_every_setting_is_a_property_and_every_default_is_accepted() -> None:
    """What the deployment asks for is what the first boot reads."""
    keys = {each.key for each in PROPERTIES}
    assert keys == set(MachineSettings.__slots__) | {"repository_passphrase"}
    found = parse_properties({each.key: each.value for each in PROPERTIES})
    assert found.settings == MachineSettings()
    assert [each.key for each in PROPERTIES if each.password] == ["repository_passphrase"]


def test_the_descriptor_keeps_the_order_and_the_references_of_the_standard() -> None:
    """The structure that DSP0243 asks for; no schema of it is in Debian or on PyPI."""
    root = ElementTree.fromstring(TEXT)
    sections = [child.tag.removeprefix(_OVF) for child in root]
    assert sections == ["References", "DiskSection", "NetworkSection", "VirtualSystem"]
    system = root.find(f"{_OVF}VirtualSystem")
    assert system is not None
    assert [child.tag.removeprefix(_OVF) for child in system] == [
        *("Info", "Name", "OperatingSystemSection", "VirtualHardwareSection", "ProductSection")
    ]
    for section in root.iter():
        if section.tag.endswith("Section"):
            assert section[0].tag == f"{_OVF}Info", section.tag
    ids = []
    for item in system.iter(f"{_OVF}Item"):
        names = [child.tag.rpartition("}")[2] for child in item]
        assert names == sorted(names)
        ids.append(item[names.index("InstanceID")].text)
    assert len(ids) == len(set(ids))
    transports = [each.get(f"{_OVF}transport") for each in system.iter()]
    assert "com.vmware.guestInfo" in transports


def test_the_tar_is_in_order_with_a_manifest_that_holds(tmp_path: Path) -> None:
    """And the same input makes the same bytes."""
    disk = tmp_path / "a.vmdk"
    disk.write_bytes(b"disk" * 1000)
    made = []
    for number in range(2):
        target = tmp_path / f"{number}.ova"
        write_ova(target, "holdfast", TEXT, [disk], 1_700_000_000)
        made.append(target.read_bytes())
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "0.ova") as ova:
        assert ova.getnames() == ["holdfast.ovf", "holdfast.mf", "a.vmdk"]
        manifest = ova.extractfile("holdfast.mf")
        assert manifest is not None
        lines = manifest.read().decode().splitlines()
        for line in lines:
            match = re.fullmatch(r"SHA256\(([^)]+)\)= ([0-9a-f]{64})", line)
            assert match is not None
            content = ova.extractfile(match[1])
            assert content is not None
            assert hashlib.sha256(content.read()).hexdigest() == match[2]
        assert len(lines) == 2


def test_the_system_disk_is_written_as_a_stream_that_reads_back(tmp_path: Path) -> None:
    """Holes are not read, and the same disk makes the same file."""
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.write(b"begin" * 1000)
        file.seek(40 << 20)
        file.write(b"end" * 1000)
        file.truncate(64 << 20)
    for name in ("one", "two"):
        write_vmdk(raw, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = bytearray(64 << 20)
    with (tmp_path / "one").open("rb") as file:
        for grain in StreamOptimizedReader(file.read).grains():
            data = grain.inflate()
            back[grain.offset : grain.offset + len(data)] = data
    assert bytes(back) == raw.read_bytes()


def test_the_bill_of_materials_names_every_wheel(tmp_path: Path) -> None:
    """With version and licence as the wheel itself says."""
    with zipfile.ZipFile(tmp_path / "a-1.0-py3-none-any.whl", "w") as wheel:
        text = "Metadata-Version: 2.1\nName: a\nVersion: 1.0\nLicense: MIT\n\nlong"
        wheel.writestr("a-1.0.dist-info/METADATA", text)
    (component,) = _python(tmp_path)
    assert component["purl"] == "pkg:pypi/a@1.0"
    assert json.dumps(component["licenses"]) == '[{"license": {"name": "MIT"}}]'


def test_no_package_is_listed_twice_and_no_driver_of_a_virtual_disk_is_left_out() -> None:
    """The lists are short enough to be checked by eye; this is the second pair."""
    assert len(PACKAGES) == len(set(PACKAGES))
    assert not any("scsi" in each or "block" in each or "virtio" in each for each in EXCLUDED)
