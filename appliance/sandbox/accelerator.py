"""Which accelerator runs the sandbox: KVM when it demonstrably executes guest code, else TCG.

The presence of /dev/kvm proves little: inside some virtual machines it opens, and then QEMU
aborts at the first use of the host's processor model, or guest code crawls (measured on one such
host: the BIOS took 3.8 s under KVM and 0.06 s under TCG, and a Linux kernel never came up). So the
probe boots, with the very processor model that the sandbox uses, a boot sector of our own whose
only act is to write to QEMU's isa-debug-exit port. Reaching it takes the BIOS through real and
protected mode, interrupts and a disk; the exit status is one that nothing else produces.
The answer is cached per process. Thread model: any thread; the first caller probes, others wait.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from appliance.base.reasons import Reason

QEMU = "qemu-system-x86_64"
_KVM_DEVICE = Path("/dev/kvm")
_PROBE_TIMEOUT_S = 2.0  # TCG needs 0.06 s; what is slower than this is of no use
_EXIT_PORT = 0xF4
_EXIT_VALUE = 0x2A
_EXIT_STATUS = _EXIT_VALUE << 1 | 1  # isa-debug-exit: (value << 1) | 1
_DISK_BYTES = 64 * 1024


class Accelerator(StrEnum):
    KVM = "kvm"
    TCG = "tcg"


KVM_WORKS = Reason("sandbox.kvm-works", "KVM runs guests here", "none", warning=False)
KVM_ABSENT = Reason(
    "sandbox.kvm-absent",
    "there is no /dev/kvm, so the guest is emulated and boots several times slower",
    "enable hardware virtualisation for this machine",
    warning=False,
)
KVM_UNUSABLE = Reason(
    "sandbox.kvm-unusable",
    "/dev/kvm is there but does not run a guest, so it is emulated and boots several times slower",
    "enable nested virtualisation, or check the permissions of /dev/kvm",
    warning=False,
)
REQUESTED = Reason("sandbox.requested", "this accelerator was asked for", "none", warning=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorChoice:
    accelerator: Accelerator
    reason: Reason


_cached: AcceleratorChoice | None = None
_cache_lock = threading.Lock()


def cpu_model(accelerator: Accelerator) -> str:
    """Five-level paging off: QEMU 7.2's TCG offers it, and every page walk gets longer by it."""
    return "host" if accelerator is Accelerator.KVM else "max,la57=off"


def choose_accelerator() -> AcceleratorChoice:
    """Probe once per process; blocks up to about 2 s the first time."""
    global _cached
    with _cache_lock:
        if _cached is None:
            _cached = _choose()
        return _cached


def executes_guest_code(
    accelerator: Accelerator, *, timeout_s: float = _PROBE_TIMEOUT_S, program: str = QEMU
) -> bool:
    """Boot the probe disk; False also when QEMU is missing, fails or hangs."""
    with tempfile.TemporaryDirectory(prefix="holdfast-probe-") as folder:
        disk = Path(folder, "probe.img")
        disk.write_bytes(_probe_disk())
        command = [
            *(program, "-accel", accelerator.value, "-cpu", cpu_model(accelerator)),
            *("-machine", "pc", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-drive", f"file={disk},format=raw,if=ide"),
            *("-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"),
        ]
        try:
            # subprocess.run kills the child with SIGKILL when the time is over.
            result = subprocess.run(
                command,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return result.returncode == _EXIT_STATUS


def _choose() -> AcceleratorChoice:
    if not _KVM_DEVICE.exists():
        return AcceleratorChoice(accelerator=Accelerator.TCG, reason=KVM_ABSENT)
    if executes_guest_code(Accelerator.KVM):
        return AcceleratorChoice(accelerator=Accelerator.KVM, reason=KVM_WORKS)
    return AcceleratorChoice(accelerator=Accelerator.TCG, reason=KVM_UNUSABLE)


def _probe_disk() -> bytes:
    """A boot sector in real mode: mov al, value; out port, al; hlt; jmp to the hlt."""
    code = bytes([0xB0, _EXIT_VALUE, 0xE6, _EXIT_PORT, 0xF4, 0xEB, 0xFD])
    return (code.ljust(510, b"\0") + b"\x55\xaa").ljust(_DISK_BYTES, b"\0")
