"""A small guest whose Linux kernel mounts our NFS exports: the only real kernel client we have.

Debian's cloud kernel with its NFS modules and a static busybox, under TCG, up within seconds. It
runs one shell script, given as a raw disk, and reaches this machine's loopback at 10.0.2.2 through
QEMU's user network. The kernel is downloaded and unpacked once, into the cache of the lab guests.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from lab.guests.image_cache import default_cache_folder
from lab.guests.initramfs import initramfs
from lab.guests.packages import KERNEL, fetch_kernel, kernel_image, versions
from tests.support.needs import needs

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "nfs", "nfsv3")
UP_S = 120.0  # under TCG on a busy machine
_SECTOR = 512
_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /mnt
for module in $(cat /modules/order); do
    insmod "/modules/$module.ko"
done
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
mount_export() {
    options=vers=3,proto=tcp,mountproto=tcp,nolock,addr=10.0.2.2,mountaddr=10.0.2.2
    mount -i -t nfs -o "$options,port=$1,mountport=$1,${4:-hard}" "10.0.2.2:$2" "$3"
}
fail() {
    echo "FAILED $*"
    dmesg | tail -n 20
    poweroff -f
}
. /dev/vda
echo "SCRIPT-END"
poweroff -f
"""


@cache
def _boot_files() -> tuple[Path, Path]:
    """Kernel and initramfs, from the cache or made new."""
    found = versions([KERNEL, "busybox-static"])
    recipe = repr((sorted(found.items()), _INIT, MODULES))
    name = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    folder = default_cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"nfs-client-{name}"
    with (folder / ".nfs-client.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            with tempfile.TemporaryDirectory(prefix="holdfast-nfs-client-", dir=folder) as temp:
                root = fetch_kernel(Path(temp))
                made = Path(temp) / "made"
                made.mkdir()
                shutil.copy(kernel_image(root), made / "vmlinuz")
                made.joinpath("initrd").write_bytes(initramfs(root, _INIT, {}, MODULES))
                made.rename(whole)
    return whole / "vmlinuz", whole / "initrd"


class NfsGuest:
    """Runs `script` from `start` on; a context manager that ends the machine."""

    def __init__(self, script: str, folder: Path, *disks: Path, name: str = "guest") -> None:
        """`script` is sourced: it may use `mount_export PORT PATH FOLDER [OPTIONS]` and `fail`.

        `disks` are /dev/vdb and on, read-only.
        """
        needs("qemu-system-x86_64", "busybox", "apt-get", "dpkg-deb")
        kernel, initrd = _boot_files()
        raw = script.encode() + b"\n"
        path = folder / f"{name}.script"
        path.write_bytes(raw + b"#" * (-len(raw) % _SECTOR))
        drives = []
        for disk in (path, *disks):
            drives += ["-drive", f"file={disk},format=raw,if=virtio,readonly=on"]
        self._process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults"),
                *("-display", "none", "-no-reboot", "-serial", "stdio"),
                *("-kernel", str(kernel), "-initrd", str(initrd)),
                *("-append", "console=ttyS0 quiet panic=-1"),
                *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"),
                *drives,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> NfsGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def lines(self) -> list[str]:
        with self._changed:
            return list(self._lines)

    def send_line(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()

    def wait_for(self, wanted: Callable[[list[str]], bool], limit_s: float = UP_S) -> list[str]:
        """Return the lines once they are as `wanted`; a script that fails fails the test."""
        deadline_s = time.monotonic() + limit_s
        with self._changed:
            while not wanted(self._lines):
                failed = [line for line in self._lines if line.startswith("FAILED")]
                assert not failed, "\n".join(self._lines[-40:])
                assert not self._ended, "the guest ended:\n" + "\n".join(self._lines[-40:])
                left_s = deadline_s - time.monotonic()
                assert left_s > 0, "the guest is late:\n" + "\n".join(self._lines[-40:])
                self._changed.wait(left_s)
            return list(self._lines)

    def wait_for_line(self, text: str, limit_s: float = UP_S) -> list[str]:
        return self.wait_for(lambda lines: text in lines, limit_s)

    def wait_for_end(self, limit_s: float = UP_S) -> list[str]:
        """The script ran to its end."""
        return self.wait_for_line("SCRIPT-END", limit_s)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            with self._changed:
                self._lines.append(raw.decode(errors="replace").strip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
