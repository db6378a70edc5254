"""A VM's configuration as `capture_vm` answers it: enough to build the VM again elsewhere.

It goes into the recovery point as JSON and is read back by a restore, so a field is only ever
added, with a default. Thread model: values. Source: `scripts/capture_vm.ps1`.
"""

from __future__ import annotations

from pydantic import Field

from hyperv.script_types import Answer

_MANY = 300


class Identity(Answer):
    bios_guid: str
    bios_serial: str
    board_serial: str
    chassis_serial: str
    chassis_asset_tag: str


class Processor(Answer):
    count: int
    reserve: int
    limit: int
    weight: int
    nested: bool
    compatibility: bool


class Memory(Answer):
    startup_bytes: int
    minimum_bytes: int
    maximum_bytes: int
    dynamic: bool
    buffer: int
    weight: int


class BootEntry(Answer):
    type: int
    path: str
    attachment: str


class Firmware(Answer):
    """Of generation 2."""

    secure_boot: bool
    secure_boot_template: str
    secure_boot_template_id: str
    console_mode: int
    pause_after_boot_failure: bool
    boot_order: list[BootEntry] = Field(max_length=_MANY)


class Bios(Answer):
    """Of generation 1."""

    startup_order: list[int]
    num_lock: bool


class Security(Answer):
    tpm: bool
    shielded: bool
    encrypt_state: bool


class Adapter(Answer):
    id: str
    name: str
    legacy: bool
    mac: str
    dynamic_mac: bool
    switch_name: str
    switch_id: str
    connected: bool
    vlan_mode: int
    vlan_id: int
    mac_spoofing: bool
    dhcp_guard: bool
    router_guard: bool
    device_naming: bool
    addresses: list[str]


class Controller(Answer):
    type: str
    number: int


class Dvd(Answer):
    controller: str
    controller_number: int
    location: int
    path: str


class IntegrationService(Answer):
    id: str
    enabled: bool


class CapturedVm(Answer):
    id: str
    name: str
    notes: str
    generation: int
    version: str
    identity: Identity
    processor: Processor
    memory: Memory
    firmware: Firmware | None
    bios: Bios | None
    security: Security
    checkpoint_type: int
    automatic_checkpoints: bool
    start_action: int
    start_delay_s: int
    stop_action: int
    critical_error_action: int
    clustered: bool
    adapters: list[Adapter] = Field(max_length=_MANY)
    controllers: list[Controller] = Field(max_length=_MANY)
    dvds: list[Dvd] = Field(max_length=_MANY)
    integration: list[IntegrationService] = Field(max_length=_MANY)
