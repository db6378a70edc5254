"""A VM of one hypervisor as one of the other: always legal there, bootable, and honest."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.units import MIB, TIB
from appliance.targets import hyperv_from_vsphere, vsphere_from_hyperv
from appliance.targets.captured_networks import captured_networks
from appliance.targets.contract import WantedDisk
from appliance.targets.point_hardware import for_hyperv, for_vsphere
from appliance.targets.translation import CannotTranslateError, ForeignPointError, NativeVm
from hyperv.captured_vm import BootEntry, Firmware, Memory, Security
from hyperv.config_capture import Capture
from lab.hyperv_host.vm_settings import (
    ControllerType,
    Drive,
    Identity,
    VmSettings,
    new_scsi_ids,
)
from lab.hyperv_host.vm_settings import Memory as LabMemory
from lab.hyperv_host.windows_path import WindowsPath
from tests.support.captured_vms import (
    attachment,
    controller,
    hyperv_adapter,
    hyperv_capture,
    hyperv_vm,
    vsphere_disk,
    vsphere_nic,
    vsphere_vm,
    wanted_of_hyperv,
    wanted_of_vsphere,
)
from vmware.captured_vm import BootDevice, BootKind, CapturedDevice, CapturedVm
from vmware.network_choice import ChosenNetwork
from vmware.networks import NetworkInfo
from vmware.vm_spec import SpecChoices, UuidPolicy, first_spec
from vmware.vm_spec_devices import MacPolicy, disk_address
from vmware.vmx import VmxChoices, build_vmx

_SCSI = ("ParaVirtualSCSIController", "VirtualLsiLogicSASController", "VirtualLsiLogicController")
_BUSES: tuple[tuple[tuple[str, ...], int, int, list[int]], ...] = (
    (_SCSI, 1000, 4, [unit for unit in range(16) if unit != 7]),
    (("VirtualAHCIController",), 15000, 4, list(range(30))),
    (("VirtualNVMEController",), 31000, 4, list(range(15))),
    (("VirtualIDEController",), 200, 2, [0, 1]),
)
_NICS = ("VirtualVmxnet3", "VirtualE1000e", "VirtualE1000", "VirtualSriovEthernetCard")
_GUESTS = ("windows2019srv_64Guest", "debian12_64Guest", "winXPProGuest", "otherGuest", "")
_SIZES = st.integers(1, 1 << 20).map(lambda mib: mib * MIB)


@st.composite
def vsphere_vms(draw: st.DrawFn) -> CapturedVm:
    controllers, disks = [], []
    for kinds, key, buses, units in _BUSES:
        for bus in range(draw(st.integers(0, buses))):
            controllers.append(controller(draw(st.sampled_from(kinds)), key + bus, bus))
            for unit in draw(st.sets(st.sampled_from(units), max_size=4)):
                disks.append(vsphere_disk(2000 + len(disks), key + bus, unit, draw(_SIZES)))
    order = draw(st.lists(st.sampled_from([2000, 2001, 2005, 4000]), unique=True, max_size=2))
    return vsphere_vm(
        name=draw(st.text(min_size=1, max_size=90)),
        firmware=draw(st.sampled_from(["bios", "efi", ""])),
        secure_boot=draw(st.booleans()),
        guest_id=draw(st.sampled_from(_GUESTS)),
        cpus=draw(st.integers(1, 768)),
        memory_mib=draw(st.integers(4, 24 << 20)),
        controllers=tuple(controllers),
        disks=tuple(draw(st.permutations(disks))),
        boot_order=tuple(BootDevice(kind=BootKind.DISK, device_key=key) for key in order),
        nics=tuple(
            vsphere_nic(number, kind)
            for number, kind in enumerate(draw(st.lists(st.sampled_from(_NICS), max_size=10)))
        ),
    )


@st.composite
def captures(draw: st.DrawFn) -> Capture:
    generation = draw(st.sampled_from([1, 2]))
    scsi = st.tuples(st.just("scsi"), st.integers(0, 3), st.integers(0, 63))
    ide = st.tuples(st.just("ide"), st.integers(0, 1), st.integers(0, 1))
    places = draw(st.lists(ide | scsi if generation == 1 else scsi, unique=True, max_size=30))
    template = draw(st.sampled_from(["MicrosoftWindows", "OpenSourceShieldedVM", ""]))
    first = draw(st.sampled_from(places)) if places else ("scsi", 0, 0)
    vm = hyperv_vm(
        generation,
        name=draw(st.text(min_size=1, max_size=100)),
        adapters=[
            hyperv_adapter(n, switch_name=draw(st.sampled_from(["", "Production"])))
            for n in range(draw(st.integers(0, 12)))
        ],
    )
    if vm.firmware is not None:
        entry = BootEntry(type=1, path="", attachment=attachment(*first))
        changes = {"secure_boot": bool(template), "secure_boot_template": template}
        firmware = vm.firmware.model_copy(update=changes | {"boot_order": [entry]})
        vm = vm.model_copy(update={"firmware": firmware})
    return hyperv_capture(vm, *places, size_bytes=draw(_SIZES))


def boot_disk_of(vm: CapturedVm) -> int:
    """Its number in `wanted_of_vsphere`: the order's first, else the first by bus."""
    rank = {"ide": 0, "scsi": 1, "sata": 2, "nvme": 3}
    keys = [device.device_key for device in vm.boot_order]

    def place(number: int) -> Any:
        disk = vm.disks[number]
        bus, _, unit = disk_address(vm, disk).partition(":")
        return disk.key != keys[0] if keys else False, rank[bus.rstrip("0123")], bus, int(unit)

    return min(range(len(vm.disks)), key=place)


def codes(native: NativeVm[Any]) -> set[str]:
    return {reason.code for reason in native.reasons}


def at_lab_host(capture: Capture) -> VmSettings:
    """What the practice host makes of it; it refuses places that are none, or taken."""
    vm = capture.vm
    made = VmSettings(
        vm_id=str(uuid.UUID(int=1)),
        name=vm.name,
        folder=WindowsPath.parse("C:\\vm"),
        generation=vm.generation,
        version="9.0",
        processors=vm.processor.count,
        memory=LabMemory(
            startup_bytes=vm.memory.startup_bytes,
            minimum_bytes=vm.memory.minimum_bytes,
            maximum_bytes=vm.memory.maximum_bytes,
            dynamic=vm.memory.dynamic,
        ),
        identity=Identity(**vm.identity.model_dump()),
        scsi_ids=new_scsi_ids(sum(each.type == "scsi" for each in vm.controllers)),
    )
    for disk in capture.disks:
        made = made.with_drive(
            Drive(
                controller=ControllerType(disk.controller),
                controller_number=disk.controller_number,
                location=disk.location,
            )
        )
    return made


@settings(max_examples=150, deadline=None)
@given(vsphere_vms())
def test_any_vsphere_vm_is_a_legal_hyperv_vm_that_finds_its_boot_disk(vm: CapturedVm) -> None:
    """Each disk has a place of its own that the host has, with its size; the one that booted is
    where the generation looks first; processors, memory, adapters and name are within bounds."""
    wanted = wanted_of_vsphere(vm)
    native = hyperv_from_vsphere.translate(vm, wanted)
    made, generation = native.vm.vm, native.vm.vm.generation
    assert generation == (2 if vm.firmware == "efi" else 1)
    assert len(at_lab_host(native.vm).drives) == len(vm.disks)
    assert [(d.number, d.size_bytes) for d in native.vm.disks] == [
        (d.number, d.size_bytes) for d in wanted
    ]
    if vm.disks:
        places = {disk.number: disk.place for disk in native.disks}
        assert places[boot_disk_of(vm)] == ("ide0:0" if generation == 1 else "scsi0:0")
    assert 1 <= made.processor.count <= 240 and made.memory.startup_bytes % (2 * MIB) == 0
    assert made.name.strip() and not set(made.name) & set('\\/:*?"<>|\n')
    assert len(made.adapters) <= 8 and not any(a.legacy for a in made.adapters if generation == 2)
    assert (made.firmware is None, made.bios is None) == (generation == 1, generation == 2)
    assert Capture.model_validate_json(native.vm.model_dump_json()) == native.vm


@settings(max_examples=100, deadline=None)
@given(vsphere_vms(), st.data())
def test_a_part_of_the_disks_makes_the_same_vm(vm: CapturedVm, data: st.DataObject) -> None:
    """A point that lacks disks, and the step that registers the VM without asking for disks."""
    wanted = wanted_of_vsphere(vm)
    whole = hyperv_from_vsphere.translate(vm, wanted)
    some = data.draw(st.lists(st.sampled_from(wanted), unique=True)) if wanted else []
    part = hyperv_from_vsphere.translate(vm, some)
    assert part.vm.vm == whole.vm.vm
    assert set(part.disks) <= set(whole.disks)


@settings(max_examples=150, deadline=None)
@given(captures())
def test_any_hyperv_vm_is_a_legal_vsphere_vm_that_finds_its_boot_disk(capture: Capture) -> None:
    """A spec and a .vmx can be made of it; each disk has a place of its own; the one that booted
    comes first, on IDE where it was on IDE; an adapter on no network is told as such."""
    wanted = wanted_of_hyperv(capture)
    native = vsphere_from_hyperv.translate(capture, wanted)
    vm = native.vm
    assert vm.firmware == ("bios" if capture.vm.generation == 1 else "efi")
    places = [disk.place for disk in native.disks]
    assert "" not in places and len(set(places)) == len(places) == len(capture.disks)
    for old, new in zip(wanted, native.disks, strict=True):
        assert new.place == old.place if old.place.startswith("ide") else new.place[:4] == "sata"
    if vm.disks:
        boots = capture.boot_disk
        assert vm.boot_order[0].device_key == vm.disks[0].key
        booted = next(disk for disk in native.disks if disk.number == boots)
        assert disk_address(vm, vm.disks[0]) == booted.place
    assert vm.cpus % vm.cores_per_socket == 0
    unconnected = [nic.label for nic in vm.nics if not nic.start_connected]
    assert native.unconnected == set(unconnected)
    assert_can_be_made(vm)


def assert_can_be_made(vm: CapturedVm) -> None:
    lan = NetworkInfo(
        moref="network-1", kind="standard", name="LAN", portgroup_key="", switch_name="",
        switch_uuid="", vlan="", opaque_id="", opaque_type="",
    )  # fmt: skip
    networks = {nic.key: ChosenNetwork(network=lan, start_connected=True) for nic in vm.nics}
    choices = SpecChoices(
        name="new",
        home="[ds]",
        mark="mark",
        instance_uuid="uuid",
        hardware_most=19,
        disk_keys=frozenset(disk.key for disk in vm.disks),
        networks=networks,
        mac=MacPolicy.KEEP,
        uuid=UuidPolicy.KEEP,
    )
    planned = first_spec(vm, choices)
    assert len({disk.address for disk in planned.disks}) == len(vm.disks)
    assert planned.spec.version == "vmx-19"
    text = build_vmx(
        vm,
        VmxChoices(
            name="new",
            nvram_file=None,
            disk_files={disk.key: f"disk-{disk.key}.vmdk" for disk in vm.disks},
            networks=networks,
            hardware_most=19,
            bios_uuid=str(uuid.UUID(int=1)),
            instance_uuid=None,
            mac=MacPolicy.KEEP,
            mark=("holdfast.session", "mark"),
        ),
    ).decode()
    assert text.count("-hardDisk") == len(vm.disks)
    assert text.count(' = "e1000e"') == len(vm.nics)


@settings(max_examples=100, deadline=None)
@given(vsphere_vms())
def test_there_and_back_keeps_what_both_have_words_for(vm: CapturedVm) -> None:
    """Firmware, disks with their sizes and the first among them, addresses, networks, notes, and
    within the bounds of both processors and memory."""
    there = hyperv_from_vsphere.translate(vm, wanted_of_vsphere(vm))
    if sum(disk.controller == "scsi" for disk in there.vm.disks) > 120:
        with pytest.raises(CannotTranslateError):
            vsphere_from_hyperv.translate(there.vm, there.disks)
        return
    back = vsphere_from_hyperv.translate(there.vm, there.disks)
    assert back.vm.firmware == (vm.firmware or "bios")
    sizes = {disk.number: disk.size_bytes for disk in back.disks}
    assert sizes == {number: disk.capacity_bytes for number, disk in enumerate(vm.disks)}
    if vm.disks:
        assert back.vm.disks[0].capacity_bytes == vm.disks[boot_disk_of(vm)].capacity_bytes
    kept = vm.nics[: len(there.vm.vm.adapters)]
    assert [(n.mac, n.network_name) for n in back.vm.nics] == [
        (n.mac, n.network_name) for n in kept
    ]
    assert (back.vm.annotation, back.vm.bios_uuid) == (vm.annotation, vm.bios_uuid)
    if vm.cpus <= 64:
        assert back.vm.cpus == vm.cpus
    if 32 <= vm.memory_mib <= 1 << 20:
        assert back.vm.memory_mib == -(-vm.memory_mib // 4) * 4


# Golden cases


def test_a_bios_linux_on_a_paravirtual_controller() -> None:
    """Generation 1, the first three disks on IDE beside the DVD drive, the fourth on SCSI."""
    vm = vsphere_vm(
        controllers=(controller("ParaVirtualSCSIController", 1000),),
        disks=tuple(vsphere_disk(2000 + unit, 1000, unit) for unit in range(4)),
        boot_order=(
            BootDevice(kind=BootKind.NIC, device_key=4000),
            BootDevice(kind=BootKind.DISK, device_key=2002),
        ),
        nics=(vsphere_nic(0),),
    )
    native = hyperv_from_vsphere.translate(vm, wanted_of_vsphere(vm))
    assert [disk.place for disk in native.disks] == ["ide0:1", "ide1:1", "ide0:0", "scsi0:0"]
    made = native.vm.vm
    assert (made.generation, made.name, made.notes) == (1, "web", "owner: web team")
    assert (made.processor.count, made.memory.startup_bytes >> 20) == (2, 2048)
    (adapter,) = made.adapters
    assert (adapter.mac, adapter.dynamic_mac, adapter.switch_name, adapter.legacy) == (
        "005056000000", False, "LAN", False
    )  # fmt: skip
    assert codes(native) == {
        "translation.drivers",
        "translation.guest-software",
        "translation.adapters",
        "translation.identity",
    }


def test_the_order_of_disks_that_was_set_by_hand_is_kept() -> None:
    """As an advanced setting, where no device is named."""
    vm = vsphere_vm(
        controllers=(controller("ParaVirtualSCSIController", 1000),),
        disks=(vsphere_disk(2000, 1000, 0), vsphere_disk(2001, 1000, 1)),
        settings=(("bios.hddOrder", "scsi0:1,scsi0:0"),),
    )
    native = hyperv_from_vsphere.translate(vm, wanted_of_vsphere(vm))
    assert [disk.place for disk in native.disks] == ["ide0:1", "ide0:0"]


@pytest.mark.parametrize(
    ("guest", "template"),
    [
        ("windows2019srv_64Guest", "MicrosoftWindows"),
        ("ubuntu64Guest", "MicrosoftUEFICertificateAuthority"),
    ],
)
def test_efi_with_secure_boot_and_a_tpm(guest: str, template: str) -> None:
    """Generation 2, SCSI alone, the template of the guest's family, and a TPM."""
    tpm = CapturedDevice(
        key=11000, kind="VirtualTPM", label="Virtual TPM", controller_key=-1, unit_number=-1
    )
    gpu = replace(tpm, key=13000, kind="VirtualPCIPassthrough", label="GRID vGPU")
    keyboard = replace(tpm, key=600, kind="VirtualKeyboard", label="Keyboard")
    vm = vsphere_vm(
        firmware="efi",
        secure_boot=True,
        guest_id=guest,
        controllers=(controller("VirtualNVMEController", 31000),),
        disks=(vsphere_disk(1, 31000, 0), vsphere_disk(2, 31000, 1)),
        other_devices=(tpm, gpu, keyboard),
    )
    native = hyperv_from_vsphere.translate(vm, wanted_of_vsphere(vm))
    assert [disk.place for disk in native.disks] == ["scsi0:0", "scsi0:1"]
    firmware = native.vm.vm.firmware
    assert firmware is not None
    assert (firmware.secure_boot, firmware.secure_boot_template) == (True, template)
    assert native.vm.vm.security.tpm
    assert {
        "translation.secure-boot",
        "translation.boot-entries",
        "translation.devices-left-out",
    } <= codes(native)
    (left,) = [r for r in native.reasons if r.code == "translation.devices-left-out"]
    assert left.text.endswith("new VM: GRID vGPU")


def test_a_generation_1_vm() -> None:
    """Its IDE disk stays on IDE, where its drivers are; a data disk goes to AHCI; e1000e."""
    capture = hyperv_capture(hyperv_vm(), ("scsi", 0, 3), ("ide", 0, 0))
    native = vsphere_from_hyperv.translate(capture, wanted_of_hyperv(capture))
    vm = native.vm
    assert [disk.place for disk in native.disks] == ["sata0:0", "ide0:0"]
    assert (vm.firmware, vm.guest_id, vm.cpus, vm.memory_mib) == ("bios", "otherGuest64", 2, 2048)
    (nic,) = vm.nics
    assert (nic.kind, nic.mac, nic.network_name) == (
        "VirtualE1000e", "00:15:5d:00:00:00", "Production"
    )  # fmt: skip
    assert [(device.kind, device.unit_number) for device in vm.other_devices] == [
        ("VirtualCdrom", 0)
    ]
    assert codes(native) == {
        "translation.drivers",
        "translation.guest-software",
        "translation.adapters",
        "translation.guest-unknown",
        "translation.identity",
    }


def test_a_generation_2_windows_vm() -> None:
    """EFI with secure boot, a Windows guest by its template, disks on AHCI; no TPM is made."""
    vm = hyperv_vm(
        2,
        security=Security(tpm=True, shielded=False, encrypt_state=False),
        adapters=[hyperv_adapter(0, vlan_id=12, vlan_mode=1)],
    )
    assert vm.firmware is not None
    firmware = vm.firmware.model_copy(
        update={"secure_boot": True, "secure_boot_template": "MicrosoftWindows"}
    )
    memory = Memory.model_validate(vm.memory.model_dump() | {"dynamic": True})
    capture = hyperv_capture(
        vm.model_copy(update={"firmware": firmware, "memory": memory}), ("scsi", 0, 0)
    )
    native = vsphere_from_hyperv.translate(capture, wanted_of_hyperv(capture))
    made = native.vm
    assert (made.firmware, made.secure_boot) == ("efi", True)
    assert made.guest_id == "windows9Server64Guest"
    assert native.disks[0].place == "sata0:0"
    assert "VirtualTPM" in {device.kind for device in made.other_devices}
    assert {
        "translation.boot-entries",
        "translation.dynamic-memory",
        "translation.adapter-settings",
    } <= codes(native)


def test_an_unknown_template_turns_secure_boot_off() -> None:
    """Its keys are not vSphere's: the guest would never start."""
    vm = hyperv_vm(2)
    assert vm.firmware is not None
    firmware = Firmware.model_validate(
        vm.firmware.model_dump()
        | {"secure_boot": True, "secure_boot_template": "OpenSourceShieldedVM"}
    )
    capture = hyperv_capture(vm.model_copy(update={"firmware": firmware}), ("scsi", 0, 0))
    native = vsphere_from_hyperv.translate(capture, ())
    assert not native.vm.secure_boot and "translation.secure-boot" in codes(native)


def test_a_guest_without_the_drivers_has_legacy_adapters() -> None:
    """Up to four of them, on generation 1; the rest is told."""
    nics = tuple(vsphere_nic(number) for number in range(6))
    vm = vsphere_vm(guest_id="winXPProGuest", nics=nics)
    native = hyperv_from_vsphere.translate(vm, ())
    assert [adapter.legacy for adapter in native.vm.vm.adapters] == [True] * 4
    (left,) = [r for r in native.reasons if r.code == "translation.adapters-left-out"]
    assert left.text.endswith("Network adapter 5, Network adapter 6")


@pytest.mark.parametrize(
    ("places", "options"),
    [
        ([("scsi", 0, 0)], {"sector_bytes": 4096}),
        ([("scsi", 0, 0)], {"size_bytes": 63 * TIB}),
        ([("scsi", n // 64, n % 64) for n in range(121)], {}),
    ],
    ids=["4k sectors", "too large", "too many"],
)
def test_what_vsphere_has_no_place_for_is_refused(places: Any, options: Any) -> None:
    """Before anything is made, with the disk or the number named."""
    with pytest.raises(CannotTranslateError, match=r"disk 0 has|121 disks"):
        vsphere_from_hyperv.translate(hyperv_capture(hyperv_vm(2), *places, **options), ())


# Documents


def test_a_document_of_the_same_hypervisor_is_read_as_it_is() -> None:
    """Nothing is translated, nothing told."""
    capture = hyperv_capture(hyperv_vm(), ("ide", 0, 0))
    disks = wanted_of_hyperv(capture)
    document = capture.model_dump(mode="json") | {"identity": {}, "backup": {}}
    assert for_hyperv(document, disks) == NativeVm(vm=capture, disks=disks, is_foreign=False)
    assert for_vsphere(document, disks).is_foreign
    assert captured_networks(document) == ("Production",)


@pytest.mark.parametrize("hardware", [{}, {"schema": "other"}, {"format": 1, "vm": {}}])
def test_a_document_of_neither_is_refused(hardware: Any) -> None:
    """With a next step, whatever was asked for."""
    with pytest.raises(ForeignPointError):
        for_hyperv(hardware)
    assert captured_networks(hardware) == ()


def test_a_disk_that_the_document_does_not_know_is_refused() -> None:
    """A place is never guessed."""
    capture = hyperv_capture(hyperv_vm(), ("ide", 0, 0))
    stranger = WantedDisk(number=7, label="x", place="ide0:1", size_bytes=1, data_bytes=0)
    with pytest.raises(ForeignPointError, match="disk 7"):
        vsphere_from_hyperv.translate(capture, (stranger,))
