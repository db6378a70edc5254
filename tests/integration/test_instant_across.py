"""Instant recovery on the other hypervisor: a guest of the practice vCenter runs on the practice
Hyper-V host, and the reverse.

The guest is the same disk in both labs; it numbers its writes and says which it saw durable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pyVmomi import vim

from lab.guests import GuestKind, build
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.vm_settings import OTHER_VENDORS_TEMPLATE
from lab.vcenter.virtual_machine_engine import EngineMachine
from tests.support import holdfast_program
from tests.support.holdfast_program import serving
from tests.support.hyperv_lab import HypervLab, hyperv_lab
from tests.support.instant_command import instant
from tests.support.instant_lab import InstantLab, RunningGuest, instant_lab, journal_of
from tests.support.iscsi_clients import needs_iscsi
from tests.support.lab_machines import done, reconfigured
from tests.support.lab_nfs import needs_nfs_datastores
from tests.support.restoring import disk_content

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
WARNED = 3


@dataclass(frozen=True)
class Both:
    """One state folder with a point of `web` of vSphere, and one of `mail` of Hyper-V."""

    vsphere: InstantLab
    hyperv: HypervLab
    mail_point: str

    def start(self, point: str, host: str, *words: str) -> Any:
        return instant(
            self.vsphere.lab.home,
            *("start", point, "--host", host, "--address", self.vsphere.address),
            *("--reserve", "0", "--power-on", *words),
            expect=WARNED,
        )

    def discard(self, started: Any) -> None:
        instant(self.vsphere.lab.home, "discard", started["session_id"])

    def hyperv_vm(self, name: str) -> HypervVm:
        (found,) = [vm for vm in self.hyperv.practice.host.vms() if vm.settings.name == name]
        return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    needs_iscsi()
    needs_nfs_datastores()
    with (
        instant_lab() as vsphere,
        hyperv_lab(tmp_path_factory.mktemp("volumes")) as hyperv,
    ):
        home = vsphere.lab.home
        hyperv.add_tiny("mail", start=False)
        known = hyperv.practice.describe()
        (home / "hyperv-password").write_text(known["password"])
        holdfast_program.run(
            home,
            *("host", "add", "hv1", "--type", "hyperv", "--user", known["user"]),
            *("--address", f"127.0.0.1:{known['port']}", "--smb-port", str(known["smb_port"])),
            *("--password-file", home / "hyperv-password"),
            *("--accept-fingerprint", known["fingerprint"]),
        )
        holdfast_program.run(
            home, "backup", "vm", "mail", "--host", "hv1", "--quiesce", "crash", "--quiet"
        )
        (mail,) = [p for p in holdfast_program.run_json(home, "point", "list") if p["vm"] == "mail"]
        with serving(home, *vsphere.serve_words, "--iscsi-port", "0"):
            yield Both(vsphere, hyperv, mail["point_id"])


def codes(started: Any) -> set[str]:
    return {reason["code"] for reason in started["reasons"]}


def test_a_vsphere_point_boots_as_a_hyperv_vm(both: Both) -> None:
    """BIOS becomes generation 1, the paravirtual disk the first one of IDE; the guest reports and
    writes; what is not handled stands in the result."""
    started = both.start(both.vsphere.point, "hv1", "--name", "across")
    assert started["phase"] == "running" and started["guest"]["heartbeat"] == "beating"
    assert {
        "translation.drivers",
        "translation.guest-software",
        "translation.identity",
    } <= codes(started)
    vm = both.hyperv_vm("across")
    assert (vm.settings.generation, vm.settings.memory.startup_bytes) == (1, 256 << 20)
    assert [drive.name for drive in vm.settings.drives] == ["ide0-0"]
    both.hyperv.say(vm, "journal start", "^ACK 5$")
    both.hyperv.say(vm, "journal stop", "^JOURNAL stop")
    both.discard(started)
    assert [vm.settings.name for vm in both.hyperv.practice.host.vms()] == ["mail"]


def test_a_hyperv_point_boots_as_a_vsphere_vm(both: Both) -> None:
    """Generation 1 becomes BIOS, its IDE disk stays one, in a VM with ids of its own; the guest
    reports and writes; what is not handled stands in the result."""
    before = both.vsphere.traces()
    mapping = "Production=VM Network"
    started = both.start(both.mail_point, "lab", "--name", "across", "--network", mapping)
    assert started["phase"] == "running" and started["guest"]["heartbeat"] == "beating"
    assert {
        "translation.drivers",
        "translation.guest-software",
        "translation.adapters",
        "translation.guest-unknown",
    } <= codes(started)
    machine: EngineMachine = both.vsphere.machine("across")
    config = machine.engine.config
    assert (config.firmware, config.memory_mib, config.guest_id) == ("bios", 256, "otherGuest64")
    assert [(nic.kind, nic.network) for nic in config.nics] == [("e1000e", "VM Network")]
    assert config.disks[0].controller_key == 200 and config.disks[0].unit == 0
    assert config.extra["bios.hddOrder"] == "ide0:0"
    guest = RunningGuest(machine)
    guest.say("journal start")
    guest.wait_for(5)
    last = guest.stop()
    assert len(journal_of(machine)) >= last
    both.discard(started)
    assert both.vsphere.traces() == before


def test_a_hyperv_point_is_restored_as_a_new_vsphere_vm(both: Both) -> None:
    """Imported, as an IDE disk must be: the disk is the one that was backed up."""
    home = both.vsphere.lab.home
    restored = holdfast_program.run_json(
        home,
        *("restore", "vm", both.mail_point, "--host", "lab", "--name", "restored"),
        *("--network", "Production=VM Network", "--quiet"),
        expect=WARNED,
    )
    assert restored["transport"] == "nfc-lease"
    assert {"translation.drivers", "translation.guest-unknown"} <= codes(restored)
    assert disk_content(both.vsphere.lab, "restored", 0) == build(GuestKind.TINY).read_bytes()
    done(both.vsphere.lab.client_of(both.vsphere.machine("restored")).Destroy_Task())


def test_an_efi_vm_of_vsphere_is_restored_to_generation_2_and_starts_with_secure_boot(
    both: Both,
) -> None:
    """Over SMB, to the first place of SCSI; the firmware has forgotten its boot entries, finds the
    loader all the same, and trusts it by the template of the guest's family."""
    lab, host = both.vsphere.lab, both.hyperv.practice.host
    machine = lab.add_machine("efi", build(GuestKind.UEFI), memory_mib=512)
    secure = vim.vm.BootOptions(efiSecureBootEnabled=True)
    reconfigured(lab.client_of(machine), firmware="efi", bootOptions=secure)
    backup = ("backup", "vm", "efi", "--host", "lab", "--quiesce", "crash", "--quiet")
    holdfast_program.run(lab.home, *backup)
    restored = holdfast_program.run_json(
        lab.home,
        *("restore", "vm", "latest:efi", "--host", "hv1", "--name", "second"),
        *("--network", "VM Network=Production", "--power-on", "--quiet"),
        expect=WARNED,
    )
    assert {"translation.boot-entries", "translation.secure-boot"} <= codes(restored)
    vm = both.hyperv_vm("second")
    assert (vm.settings.generation, vm.settings.secure_boot_template) == (2, OTHER_VENDORS_TEMPLATE)
    assert [drive.name for drive in vm.settings.drives] == ["scsi0-0"]
    assert [one.switch for one in vm.settings.adapters] == ["Production"]
    both.hyperv.wait_ready(vm)
    vm.turn_off()
    host.remove_vm(vm)
