"""The image that `make ova` has built, deployed, used, killed and updated. Runs by `make test-ova`.

The steps of the appliance's life follow each other in one machine, because every boot costs minutes
without KVM; each says what it proves.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import ssl
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.base.units import GIB
from appliance.base.version import __version__
from ova.inputs import BUILD
from ova.tests.appliance_vm import (
    ADDRESS_OF_HOST,
    ApplianceVm,
    Firmware,
    appliance_vm,
    qemu_img,
)
from ova.tests.bundles import later_bundle
from tests.support.api_server import Client
from tests.support.needs import missing_reason, needs
from tests.support.vm_lab import VmLab, vm_lab

pytestmark = pytest.mark.timeout(3000)
PASSWORD = "a password of some length"
NAME = f"holdfast-{__version__}"
LISTED_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def image() -> Path:
    needs("qemu-system-x86_64", "qemu-img", "ssh")
    path = BUILD / f"{NAME}.qcow2"
    if not path.exists():
        missing_reason(f"{path} is not there: run make ova")
    return path


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    with vm_lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def appliance(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApplianceVm]:
    """The one that lives through the steps below, under BIOS."""
    folder = tmp_path_factory.mktemp("appliance")
    with appliance_vm(
        folder,
        image,
        Firmware.BIOS,
        hostname="backup.lab.example",
        time_zone="Europe/Vienna",
        ipv4_address="10.0.2.15/24",
        ipv4_gateway=ADDRESS_OF_HOST,
        ipv6_address="none",
        dns="10.0.2.3",
        repository_passphrase="a passphrase of the repository",
    ) as vm:
        yield vm


def api(vm: ApplianceVm) -> Client:
    return Client(vm.web_port)


def answers(vm: ApplianceVm) -> bool:
    try:
        return api(vm).api("GET", "/about").status == 200
    except OSError:
        return False


def token_on(vm: ApplianceVm) -> str:
    found = re.findall(r"set-up token: (\S+)", vm.console())
    return found[-1] if found else ""


def logged_in(vm: ApplianceVm) -> Client:
    server = api(vm)
    assert server.log_in("ada", PASSWORD).status == 204
    return server


def holdfast(vm: ApplianceVm, words: str, *, good: bool = True) -> str:
    return vm.ssh(f"holdfast {words}", good=good, within_s=1500)


SECRET = "--passphrase-file /etc/holdfast/repository.passphrase"


def test_it_boots_under_uefi_with_secure_boot(image: Path, tmp_path: Path) -> None:
    """To a console that shows address, fingerprint and token, and to an API that answers."""
    with appliance_vm(tmp_path, image, Firmware.UEFI, hostname="uefi") as vm:
        vm.boot()
        vm.wait("set-up token on the console", lambda: token_on(vm) != "")
        vm.wait("answer", lambda: answers(vm))
        assert "https://10.0.2.15/" in vm.console()
        assert "Holdfast" in vm.console() and "PROBLEM" not in vm.console()
        assert vm.ssh("sudo dmesg").count("Secure boot enabled") == 1


def test_step_1_it_boots_under_bios_with_its_properties(appliance: ApplianceVm) -> None:
    """Host name, static address and zone are as given; the console shows the real certificate."""
    appliance.boot()
    appliance.wait("set-up token on the console", lambda: token_on(appliance) != "")
    appliance.wait("answer", lambda: answers(appliance))
    pem = ssl.get_server_certificate(("127.0.0.1", appliance.web_port))

    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()
    shown = ":".join(digest[at : at + 2] for at in range(0, 64, 2))
    assert shown in re.sub(r"\s+", "", appliance.console())
    assert appliance.ssh("hostname").strip() == "backup.lab.example"
    assert "10.0.2.15/24" in appliance.ssh("ip -brief address")
    assert appliance.ssh("date +%Z").strip() in ("CET", "CEST")
    assert "policy drop" in appliance.ssh("sudo nft list ruleset")
    assert "a passphrase" not in appliance.ssh("sudo journalctl --boot --no-pager")
    failed = appliance.ssh("systemctl list-units --failed --no-legend --plain")
    assert failed == ""


def test_step_2_it_is_set_up_through_its_api(appliance: ApplianceVm) -> None:
    """With the token of the console, once; then the token is gone."""
    server = api(appliance)
    wrong = {"token": "wrong", "name": "ada", "password": PASSWORD}
    assert server.api("POST", "/setup", wrong).status == 403
    made = server.api("POST", "/setup", wrong | {"token": token_on(appliance)})
    assert made.status == 204
    assert server.api("GET", "/about").document["needs_setup"] is False
    appliance.ssh("sudo test -e /run/holdfast/setup-token", good=False)


def test_step_3_it_backs_up_a_vm_of_the_vcenter(appliance: ApplianceVm, lab: VmLab) -> None:
    """Registered through the API; the guest runs; the repository is encrypted."""
    lab.add_guest("web")
    server = logged_in(appliance)
    host = {
        "name": "lab",
        "address": ADDRESS_OF_HOST,
        "port": lab.vcenter.port,
        "user": lab.vcenter.user,
        "password": lab.vcenter.password,
        "fingerprint": lab.vcenter.fingerprint,
    }
    made = server.api("POST", "/hosts", host)
    assert made.status in (200, 201), made.body
    document = json.loads(holdfast(appliance, f"backup vm web --json {SECRET} 2>/dev/null"))
    assert document
    deadline_s = time.monotonic() + LISTED_WITHIN_S  # another process has made it
    while not (points := server.api("GET", "/points").document):
        assert time.monotonic() < deadline_s, "the new point is not listed"
        time.sleep(0.5)
    assert [point["vm"] for point in points] == ["web"]
    assert server.api("GET", "/repository").status == 200


def test_step_4_killed_it_comes_back_with_everything_and_a_larger_disk(
    appliance: ApplianceVm,
) -> None:
    """Account, host, recovery point, settings; the data disk was made larger meanwhile."""
    before = appliance.ssh("sudo cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
    appliance.kill()
    qemu_img("resize", appliance.data_disk, str(12 * GIB))
    appliance.boot()
    appliance.wait("answer", lambda: answers(appliance))
    server = logged_in(appliance)
    assert [host["name"] for host in server.api("GET", "/hosts").document] == ["lab"]
    assert len(server.api("GET", "/points").document) == 1
    assert appliance.ssh("sudo cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub") == before
    size = int(appliance.ssh("df --output=size -B1 /var/lib/holdfast | tail -1"))
    assert size > 11 * GIB
    holdfast(appliance, f"verify latest:web {SECRET}")


def test_step_5_an_update_changes_the_version_and_nothing_else(
    appliance: ApplianceVm, tmp_path: Path
) -> None:
    """From a bundle of the key the image was built with; any other file is refused."""
    (tmp_path / "other").write_bytes(b"no bundle")
    appliance.copy_in(tmp_path / "other", "other.update")
    assert "update.bundle" in holdfast(appliance, "update other.update", good=False)
    bundle = later_bundle(tmp_path / "1", BUILD / f"{NAME}.update", "90.1", works=True)
    appliance.copy_in(bundle, "good.update")
    assert "updated from" in holdfast(appliance, "update good.update")
    assert api(appliance).api("GET", "/about").document["version"] == "90.1"
    assert len(logged_in(appliance).api("GET", "/points").document) == 1


def test_step_6_a_broken_update_rolls_back(appliance: ApplianceVm, tmp_path: Path) -> None:
    """The version before runs again, with its accounts and recovery points."""
    bundle = later_bundle(tmp_path / "2", BUILD / f"{NAME}.update", "90.2", works=False)
    appliance.copy_in(bundle, "broken.update")
    assert "update.rolled-back" in holdfast(appliance, "update broken.update", good=False)
    appliance.wait("answer", lambda: answers(appliance))
    assert api(appliance).api("GET", "/about").document["version"] == "90.1"
    assert len(logged_in(appliance).api("GET", "/points").document) == 1
    assert "90.2" not in appliance.ssh("ls /opt/holdfast")


def test_the_archive_holds_what_its_manifest_says(tmp_path: Path) -> None:
    """In the order that importers read; the disk is that of the qcow2."""
    path = BUILD / f"{NAME}.ova"
    if not path.exists():
        missing_reason(f"{path} is not there: run make ova")
    with tarfile.open(path) as ova:
        disks = [f"{NAME}-system.vmdk", f"{NAME}-data.vmdk"]
        assert ova.getnames() == [f"{NAME}.ovf", f"{NAME}.mf", *disks]
        content = ova.extractfile(disks[0])
        assert content is not None
        with (tmp_path / disks[0]).open("wb") as file:
            shutil.copyfileobj(content, file)
    qemu_img("compare", tmp_path / disks[0], BUILD / f"{NAME}.qcow2")
