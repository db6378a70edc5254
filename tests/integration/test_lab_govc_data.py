"""govc on the practice vCenter's data plane: files, tags, import and export of machines."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.govc import Govc, GovcError, govc_for
from tests.support.lab_machines import Practice, practice
from tests.support.needs import needs
from tests.support.ovf_package import OVF

pytestmark = pytest.mark.integration


@pytest.fixture
def lab() -> Iterator[Practice]:
    with practice() as lab:
        yield lab


@pytest.fixture
def govc(lab: Practice) -> Govc:
    return govc_for(lab.vcenter)


def write_package(folder: Path) -> bytes:
    """OVF, disk and NVRAM; the disk's content."""
    needs("qemu-img")
    raw = folder / "in.raw"
    raw.write_bytes(os.urandom(1 << 20))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*convert, raw, folder / "disk1.vmdk"], check=True, capture_output=True)
    (folder / "a.nvram").write_bytes(b"variables")
    (folder / "packed.ovf").write_text(OVF)
    return raw.read_bytes()


def test_files_go_up_and_down(lab: Practice, govc: Govc, tmp_path: Path) -> None:
    """Whole, through vCenter; a file that is not there is 404."""
    data = os.urandom(3 << 20)
    (tmp_path / "up").write_bytes(data)
    govc("datastore.upload", "-ds", "ds1", tmp_path / "up", "a file.bin")
    assert (lab.folder / "ds1" / "a file.bin").read_bytes() == data
    govc("datastore.download", "-ds", "ds1", "a file.bin", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == data
    with pytest.raises(GovcError, match="404"):
        govc("datastore.download", "-ds", "ds1", "none.bin", tmp_path / "none")


def test_a_package_goes_in_and_comes_out(lab: Practice, govc: Govc, tmp_path: Path) -> None:
    """import.ovf makes the machine; export.ovf gives back its disk (but no descriptor)."""
    disk = write_package(tmp_path)
    options = {"NetworkMapping": [{"Name": "inside", "Network": "VM Network"}]}
    (tmp_path / "options.json").write_text(json.dumps(options))
    package = tmp_path / "packed.ovf"
    govc("import.ovf", "-ds", "ds1", "-options", tmp_path / "options.json", package)
    assert (lab.folder / "ds1" / "packed" / "packed-flat.vmdk").read_bytes() == disk
    assert (lab.folder / "ds1" / "packed" / "packed.nvram").read_bytes() == b"variables"
    with pytest.raises(GovcError, match="CreateDescriptor is not found"):  # after the disks
        govc("export.ovf", "-vm", "packed", tmp_path / "out")
    (vmdk,) = tmp_path.glob("out/packed/*.vmdk")
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", tmp_path / "in.raw", vmdk]
    subprocess.run(compare, check=True, capture_output=True)
    assert lab.vcenter.file_locks.all_locks() == []
    assert lab.plane.lease_table.open_leases() == []


def test_tags_are_made_and_attached(lab: Practice, govc: Govc) -> None:
    """By the legacy REST form that govc speaks."""
    machine = lab.create("web")
    govc("tags.category.create", "-t", "VirtualMachine", "tier")
    govc("tags.create", "-c", "tier", "gold")
    govc("tags.create", "-c", "tier", "silver")
    govc("tags.attach", "-c", "tier", "gold", "/DC0/vm/web")
    assert govc("tags.attached.ls", "-r", "/DC0/vm/web").split() == ["gold"]
    assert machine._moId in govc("tags.attached.ls", "gold")
    with pytest.raises(GovcError):
        govc("tags.attach", "-c", "tier", "silver", "/DC0/vm/web")
    govc("tags.detach", "-c", "tier", "gold", "/DC0/vm/web")
    assert govc("tags.attached.ls", "-r", "/DC0/vm/web").split() == []
    govc("tags.rm", "-c", "tier", "gold")
    assert govc("tags.ls", "-c", "tier").split()[:1] == ["silver"]
