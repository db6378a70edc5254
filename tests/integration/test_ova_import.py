"""The descriptor of the OVA deployed by govc: into the practice vCenter and govmomi's simulator."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import unescape

import pytest

from appliance.base.units import GIB
from appliance.machine.ovf_environment import parse_environment
from ova.build import pack
from ova.descriptor import DATA_BYTES
from ova.inputs import Inputs
from tests.support.govc import Govc, GovcError, govc_for
from tests.support.lab_machines import Practice, practice
from tests.support.vcsim import vcsim

pytestmark = pytest.mark.integration
DISK_BYTES = 8 * GIB


@pytest.fixture
def lab() -> Iterator[Practice]:
    with practice() as lab:
        yield lab


@pytest.fixture
def govc(lab: Practice) -> Govc:
    return govc_for(lab.vcenter)


@pytest.fixture
def ova(tmp_path: Path) -> Path:
    """As `make ova` makes it, but for what is on the system disk."""
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.write(b"a system" * 1000)
        file.truncate(DISK_BYTES)
    target = tmp_path / "holdfast.ova"
    inputs = Inputs(version="1.0", epoch=1_700_000_000, wheels=tmp_path, update_key=b"")
    pack(target, "holdfast", raw, inputs)
    return target


def options(folder: Path, network: str, **properties: str) -> Path:
    path = folder / "options.json"
    document = {
        "DiskProvisioning": "thin",
        "NetworkMapping": [{"Name": "Management", "Network": network}],
        "PropertyMapping": [{"Key": key, "Value": value} for key, value in properties.items()],
    }
    path.write_text(json.dumps(document))
    return path


def test_govc_deploys_it_into_the_practice_vcenter(
    lab: Practice, govc: Govc, ova: Path, tmp_path: Path
) -> None:
    """Both disks, and an environment that the first boot reads as it was given."""
    given = options(
        tmp_path, "VM Network", hostname="backup.example", ipv4_address="192.0.2.10/24", ntp="<&>"
    )
    govc("import.ova", "-ds", "ds1", "-name", "backup", "-options", given, ova)
    folder = lab.folder / "ds1" / "backup"
    sizes = sorted(path.stat().st_size for path in folder.glob("*-flat.vmdk"))
    assert sizes == [DISK_BYTES, DATA_BYTES]
    shown = json.loads(govc("object.collect", "-json", "vm/backup", "config.extraConfig"))
    values = {each["key"]: each["value"] for each in _values(shown)}
    told = parse_environment(values["guestinfo.ovfEnv"].encode()).properties
    assert told["hostname"] == "backup.example" and told["ipv4_address"] == "192.0.2.10/24"
    assert told["ntp"] == "<&>" and told["ipv6_address"] == "auto"
    assert values["disk.EnableUUID"] == "TRUE"


def test_a_property_that_the_descriptor_has_not_is_refused(
    lab: Practice, govc: Govc, ova: Path, tmp_path: Path
) -> None:
    """As the product refuses it."""
    given = options(tmp_path, "VM Network", host_name="backup")
    with pytest.raises(GovcError, match="host_name"):
        govc("import.ova", "-ds", "ds1", "-options", given, ova)


def test_govc_deploys_it_into_the_simulator(ova: Path, tmp_path: Path) -> None:
    """A second opinion on the descriptor, by those who wrote an importer."""
    with vcsim() as simulator:
        given = options(tmp_path, "VM Network", hostname="backup.example")
        pool = "/DC0/host/DC0_H0/Resources"
        words = ["-name", "backup", "-pool", pool, "-options", str(given)]
        simulator.govc("import.ova", *words, str(ova))
        shown = simulator.govc("device.info", "-vm", "backup", "disk-*")
        assert len(re.findall(r"^Name:", shown, re.MULTILINE)) == 2
        assert "backup.example" in unescape(simulator.govc("vm.info", "-e", "backup"))


def test_govc_reads_the_properties_out_of_the_archive(govc: Govc, ova: Path) -> None:
    """What an administrator is asked for, with the defaults."""
    spec = json.loads(govc("import.spec", ova))
    asked = {each["Key"]: each["Value"] for each in spec["PropertyMapping"]}
    assert asked["ipv4_address"] == "dhcp" and "repository_passphrase" in asked
    assert [each["Name"] for each in spec["NetworkMapping"]] == ["Management"]
    with tarfile.open(ova) as archive:
        assert archive.getnames()[0] == "holdfast.ovf"


def _values(document: object) -> list[dict[str, str]]:
    """The option values wherever govc's version puts them."""
    if isinstance(document, dict):
        if {"key", "value"} <= document.keys():
            return [document]
        return [found for each in document.values() for found in _values(each)]
    if isinstance(document, list):
        return [found for each in document for found in _values(each)]
    return []
