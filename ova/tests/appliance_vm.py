"""The appliance's disk in QEMU: properties through fw_cfg, the console on a serial line.

The guest's network is QEMU's own: it reaches this machine's loopback at 10.0.2.2, and its ports 443
and 22 are reached on ports that are free here. It runs without KVM, the same
everywhere, so nothing here has a tight limit.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from xml.sax.saxutils import quoteattr

from appliance.base.units import GIB

BOOT_S = 900.0
ADDRESS_OF_HOST = "10.0.2.2"
_POLL_S = 1.0
_OVMF = Path("/usr/share/OVMF")


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


@dataclass
class ApplianceVm:
    """Two disks in `folder`, made on first use; a process from `boot` to `kill`."""

    folder: Path
    image: Path
    firmware: Firmware
    properties: dict[str, str]
    web_port: int = 0
    ssh_port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def data_disk(self) -> Path:
        return self.folder / "data.qcow2"

    @property
    def ssh_key(self) -> Path:
        return self.folder / "key"

    def boot(self) -> None:
        """Start the machine; return at once."""
        self._make_disks()
        self.serial.unlink(missing_ok=True)
        self.web_port, self.ssh_port = free_port(), free_port()
        self._process = subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, stdout=self._log()
        )

    def kill(self) -> None:
        """As a power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def serial(self) -> Path:
        return self.folder / "serial.log"

    def console(self) -> str:
        """What the serial line has shown since boot, without control sequences."""
        text = self.serial.read_bytes().decode("utf-8", "replace") if self.serial.exists() else ""
        return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|c)", "", text)

    def wait(self, what: str, check: Callable[[], bool], within_s: float = BOOT_S) -> None:
        """Raises TimeoutError with the console's end, RuntimeError: the machine is gone."""
        ends_s = time.monotonic() + within_s
        while not check():
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"QEMU ended: {(self.folder / 'qemu.log').read_text()[-2000:]}")
            if time.monotonic() > ends_s:
                raise TimeoutError(f"no {what}; the console's end: {self.console()[-3000:]}")
            time.sleep(_POLL_S)

    def ssh(self, command: str, *, good: bool = True, within_s: float = 600.0) -> str:
        """Run a shell line as `admin`; its output. Raises RuntimeError unless it ends as `good`."""
        done = subprocess.run(
            ["ssh", *self._ssh_options("-p"), "admin@127.0.0.1", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        if (done.returncode == 0) != good:
            raise RuntimeError(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout if good else done.stdout + done.stderr

    def copy_in(self, source: Path, target: str) -> None:
        subprocess.run(
            ["scp", *self._ssh_options("-P"), source, f"admin@127.0.0.1:{target}"],
            check=True,
            capture_output=True,
            timeout=600,
        )

    def _ssh_options(self, port: str) -> list[str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        options += ["ConnectTimeout=60", "BatchMode=yes"]
        words = [word for option in options for word in ("-o", option)]
        return [*words, "-i", str(self.ssh_key), port, str(self.ssh_port)]

    def _make_disks(self) -> None:
        if self.data_disk.exists():
            return
        qemu_img(
            "create", "-f", "qcow2", "-b", self.image, "-F", "qcow2", self.folder / "sys.qcow2"
        )
        qemu_img("create", "-f", "qcow2", self.data_disk, str(8 * GIB))
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", self.ssh_key],
            check=True,
        )
        key = " ".join((self.folder / "key.pub").read_text().split()[:2])
        environment = ovf_environment(self.properties | {"ssh_key": key})
        (self.folder / "environment.xml").write_text(environment)
        if self.firmware is Firmware.UEFI:
            variables = (_OVMF / "OVMF_VARS_4M.ms.fd").read_bytes()
            (self.folder / "variables.fd").write_bytes(variables)

    def _command(self) -> list[str]:
        forward = f"hostfwd=tcp:127.0.0.1:{self.web_port}-:443"
        forward += f",hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"
        # la57 off: QEMU 7.2 does not get through the kernel's decompressor with it
        command = ["qemu-system-x86_64", "-display", "none", "-monitor", "none", "-m", "2048"]
        command += ["-smp", "2", "-accel", "tcg", "-cpu", "max,la57=off"]
        command += ["-machine", "q35,smm=on" if self.firmware is Firmware.UEFI else "q35"]
        command += ["-serial", f"file:{self.serial}", "-nic", f"user,model=virtio,{forward}"]
        command += ["-device", "virtio-scsi-pci"]
        for number, disk in enumerate((self.folder / "sys.qcow2", self.data_disk)):
            command += ["-drive", f"if=none,id=d{number},file={disk},format=qcow2,cache=writeback"]
            command += ["-device", f"scsi-hd,drive=d{number}"]
        command += ["-fw_cfg", f"name=opt/holdfast/ovf-env,file={self.folder}/environment.xml"]
        if self.firmware is Firmware.UEFI:  # with Secure Boot, and Microsoft's keys
            command += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
            code = _OVMF / "OVMF_CODE_4M.ms.fd"
            command += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"]
            variables = self.folder / "variables.fd"
            command += ["-drive", f"if=pflash,unit=1,format=raw,file={variables}"]
        return command

    def _log(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self.folder / "qemu.log", flags, 0o644)


@contextlib.contextmanager
def appliance_vm(
    folder: Path, image: Path, firmware: Firmware, **properties: str
) -> Iterator[ApplianceVm]:
    vm = ApplianceVm(folder, image, firmware, properties)
    try:
        yield vm
    finally:
        vm.kill()


def ovf_environment(properties: dict[str, str]) -> str:
    lines = "".join(
        f"<Property oe:key={quoteattr(key)} oe:value={quoteattr(value)}/>"
        for key, value in properties.items()
    )
    namespace = "http://schemas.dmtf.org/ovf/environment/1"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<Environment xmlns="{namespace}" xmlns:oe="{namespace}">'
        f"<PropertySection>{lines}</PropertySection></Environment>"
    )


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
