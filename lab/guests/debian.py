"""The debian guest: Debian 12 with systemd and nginx, as a small server would be installed.

An 8 GiB disk of which less than 1 GiB is used: GRUB in the gap and one ext4 partition. It takes
its address by DHCP, serves a page and a counter on port 80, and changes files when told to on the
serial line. What only costs time under TCG (timers, kernel debugging file systems, an initramfs
with every driver) is left out; what is there is stock Debian.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from appliance.base.units import GIB
from lab.guests.disk import FIRST_PARTITION_OFFSET, LINUX, FileSystem, Partition, write_disk
from lab.guests.initramfs import initramfs
from lab.guests.packages import KERNEL, SUITE, debian_sources, kernel_image, run

_INSTALLED = (KERNEL, "systemd-sysv", "ifupdown", "udhcpc", "nginx-light")
PACKAGES = (*_INSTALLED, "base-files", "busybox-static", "grub-pc-bin")  # what makes a new image
DISK_BYTES = 8 * GIB
HTTP_PORT = 80
_FILES = Path(__file__).with_name("files")
_UUID = "686f6c64-6661-7374-0000-64656269616e"
_MACHINE_ID = "686f6c64666173740000646562696100"
# The last console= is /dev/console, where systemd and the login prompt go; kernel messages go to
# both. audit off: it prints to the serial line.
_KERNEL_ARGS = (
    "root=LABEL=holdfast-root console=ttyS0 console=tty0 quiet audit=0 panic=-1 net.ifnames=0"
)
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "systemd-tmpfiles-clean.timer"),
    # Device events: devtmpfs and the initramfs's modules suffice; coldplug cost 6 s under TCG.
    *("systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"),
    *("systemd-udev-trigger.service", "systemd-modules-load.service", "modprobe@.service"),
    *("kmod-static-nodes.service", "systemd-tmpfiles-setup-dev.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount"),
    *("sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount", "systemd-binfmt.service"),
    *("proc-sys-fs-binfmt_misc.automount", "systemd-pstore.service", "systemd-logind.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
    *("systemd-sysusers.service", "systemd-remount-fs.service", "systemd-random-seed.service"),
    *("systemd-network-generator.service", "systemd-machine-id-commit.service"),
    *("systemd-ask-password-console.path", "systemd-ask-password-wall.path"),
    *("serial-getty@ttyS0.service", "getty-static.service"),  # tty1 keeps its login prompt
)
_MASKED_GENERATORS = (
    *("cryptsetup", "gpt-auto", "hibernate-resume", "integritysetup", "veritysetup"),
    *("rc-local", "run", "sysv", "bless-boot", "debug", "system-update"),
)
_ENABLED = ("holdfast-console.service", "holdfast-power-button.service")
_CONSOLE_UNIT = """\
[Unit]
Description=Holdfast lab: readiness and commands on the serial line
After=nginx.service network-online.target
Wants=network-online.target
[Service]
ExecStart=/usr/local/sbin/holdfast-console
[Install]
WantedBy=multi-user.target
"""
_POWER_BUTTON_UNIT = """\
[Unit]
Description=Holdfast lab: power button
[Service]
ExecStart=/usr/local/sbin/holdfast-power-button
[Install]
WantedBy=multi-user.target
"""
_INTERFACES = """\
auto lo
iface lo inet loopback
auto eth0
iface eth0 inet dhcp
"""
_PAGE = "<!DOCTYPE html>\n<h1>Holdfast debian guest</h1>\n"


def build_debian(target: Path) -> None:
    """Needs root: the packages' scripts run in a chroot that mmdebstrap makes and leaves."""
    partition = Partition(
        offset=FIRST_PARTITION_OFFSET, length=DISK_BYTES - FIRST_PARTITION_OFFSET, kind=LINUX
    )
    with tempfile.TemporaryDirectory(prefix="holdfast-debian-") as name:
        tree = Path(name) / "root"
        _install(tree)
        _configure(tree)
        _add_boot_files(tree)
        root = FileSystem(label="holdfast-root", uuid=_UUID, folder=tree)
        write_disk(target, DISK_BYTES, [partition], root, _KERNEL_ARGS)


def _install(tree: Path) -> None:
    excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED]
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", *excludes]
    packages = "--include=" + ",".join(_INSTALLED)
    run(
        [*command, packages, "--format=directory", SUITE, tree, "-"],
        timeout_s=900,
        text=debian_sources(),
    )


def _configure(tree: Path) -> None:
    etc = tree / "etc"
    (etc / "hostname").write_text("holdfast-debian\n")
    (etc / "hosts").write_text("127.0.0.1 localhost holdfast-debian\n")
    (etc / "machine-id").write_text(_MACHINE_ID + "\n")  # else every boot is a first boot
    (etc / "fstab").write_text("")  # the initramfs has mounted the root already
    (etc / "resolv.conf").write_text("")
    (etc / "network" / "interfaces").write_text(_INTERFACES)
    (etc / "systemd" / "journald.conf.d").mkdir()
    (etc / "systemd" / "journald.conf.d" / "lab.conf").write_text("[Journal]\nStorage=volatile\n")
    (tree / "srv" / "holdfast").mkdir()
    www = tree / "var" / "www" / "html"
    (www / "index.html").write_text(_PAGE)
    (www / "counter.txt").write_text("0\n")
    for script in ("holdfast-console", "holdfast-power-button"):
        source = _FILES / f"debian-{script.removeprefix('holdfast-')}.sh"
        shutil.copy(source, tree / "usr" / "local" / "sbin" / script)
        (tree / "usr" / "local" / "sbin" / script).chmod(0o755)
    _configure_systemd(tree, etc / "systemd")


def _configure_systemd(tree: Path, folder: Path) -> None:
    units = folder / "system"
    (units / "holdfast-console.service").write_text(_CONSOLE_UNIT)
    (units / "holdfast-power-button.service").write_text(_POWER_BUTTON_UNIT)
    generators = folder / "system-generators"
    generators.mkdir(exist_ok=True)
    masked = [units / unit for unit in _MASKED]
    masked += [generators / f"systemd-{name}-generator" for name in _MASKED_GENERATORS]
    for link in masked:
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    run(["systemctl", f"--root={tree}", "--quiet", "enable", *_ENABLED], timeout_s=60)
    run(
        ["systemctl", f"--root={tree}", "--quiet", "set-default", "multi-user.target"], timeout_s=60
    )


def _add_boot_files(tree: Path) -> None:
    """Debian's kernel stays installed as it is; the initramfs is ours, a tenth of the size."""
    boot = tree / "boot"
    for generated in boot.glob("initrd.img-*"):
        generated.unlink()
    (boot / "vmlinuz").symlink_to(kernel_image(tree).name)
    init = (_FILES / "debian-init.sh").read_text()
    scripts = {"start.sh": (_FILES / "start.sh").read_text()}
    (boot / "initrd.img").write_bytes(initramfs(tree, init, scripts))
