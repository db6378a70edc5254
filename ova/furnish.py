"""From Debian's tree to the appliance's: Holdfast in its environment, files, users, services.

The tree is a folder on the machine that builds; programs run in it by chroot, without mounts and
without a network. Nothing of the machine that builds gets in but the clock, which is pinned.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from appliance.machine.environments import CURRENT, install_commands
from lab.guests.packages import run
from ova.base_tree import FILES
from ova.inputs import Inputs

_USER_ID = 900
_ENABLED = (
    *("holdfast-prepare.service", "holdfast.service", "holdfast-settle.service"),
    *("holdfast-console@tty1.service", "holdfast-console@ttyS0.service"),
    *("systemd-networkd.service", "systemd-resolved.service", "chrony.service", "ssh.service"),
)
_DISABLED = ("getty@tty1.service", "nftables.service", "systemd-networkd-wait-online.service")
_MASKED = (
    *("serial-getty@ttyS0.service", "getty@tty1.service"),
    "tgt.service",  # Holdfast runs tgtd itself, when there is something to serve
)
_EMPTIED = ("var/cache/apt", "var/lib/apt/lists", "var/log", "var/cache/debconf", "tmp")
_REMOVED = (
    *("etc/machine-id", "var/lib/dbus/machine-id", "etc/hostname", "etc/resolv.conf"),
    *("var/lib/systemd/random-seed", "etc/.pwd.lock", "etc/passwd-", "etc/group-"),
    *("etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "var/cache/ldconfig/aux-cache"),
    "var/lib/systemd/catalog/database",
)
_TIMEOUT_S = 900


def furnish(tree: Path, inputs: Inputs) -> None:
    _copy_files(tree)
    _make_users(tree, inputs.epoch)
    _install_holdfast(tree, inputs)
    (tree / "etc/holdfast").mkdir(exist_ok=True)
    (tree / "etc/holdfast/update.pub").write_bytes(inputs.update_key)
    (tree / "var/lib/holdfast").mkdir(mode=0o700)
    _configure_services(tree)
    _tidy(tree)
    _pin_times(tree, inputs.epoch)


def _copy_files(tree: Path) -> None:
    for source in sorted(FILES.rglob("*")):
        if source.is_file():
            target = tree / source.relative_to(FILES)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
    (tree / "etc/sudoers.d/holdfast").chmod(0o440)


def _make_users(tree: Path, epoch: int) -> None:
    """No password for anybody: the console shows, SSH takes keys."""
    user = str(_USER_ID)
    _in(tree, ["groupadd", "--gid", user, "holdfast"], epoch)
    # commands get at hot-added disks and KVM as the daemon does
    words = ["useradd", "--uid", user, "--gid", user, "--groups", "disk,kvm"]
    words += ["--home-dir", "/var/lib/holdfast"]
    _in(tree, [*words, "--no-create-home", "--shell", "/usr/sbin/nologin", "holdfast"], epoch)
    _in(tree, ["useradd", "--create-home", "--shell", "/bin/bash", "admin"], epoch)
    _in(tree, ["usermod", "--password", "*", "admin"], epoch)  # no password, but not locked: keys
    _in(tree, ["usermod", "--password", "!", "root"], epoch)


def _install_holdfast(tree: Path, inputs: Inputs) -> None:
    wheels = tree / "tmp/wheels"
    shutil.copytree(inputs.wheels, wheels)
    (tree / "opt/holdfast").mkdir(parents=True)
    target = f"/opt/holdfast/{inputs.version}"
    for command in install_commands(target, "/tmp/wheels", inputs.version):
        _in(tree, command, inputs.epoch)
    shutil.rmtree(wheels)
    (tree / target.lstrip("/") / ".complete").touch()
    (tree / "opt/holdfast" / CURRENT).symlink_to(inputs.version)


def _configure_services(tree: Path) -> None:
    control = ["systemctl", f"--root={tree}", "--quiet"]
    run([*control, "disable", *_DISABLED], timeout_s=60)
    run([*control, "mask", *_MASKED], timeout_s=60)
    run([*control, "enable", *_ENABLED], timeout_s=60)
    run([*control, "set-default", "multi-user.target"], timeout_s=60)


def _tidy(tree: Path) -> None:
    for name in _REMOVED:
        (tree / name).unlink(missing_ok=True)
    for name in _EMPTIED:
        for path in (tree / name).iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial"):
        (tree / name).mkdir(parents=True)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for log in ("journal", "chrony", "unattended-upgrades", "apt", "private"):
        (tree / "var/log" / log).mkdir()
    run(["chroot", tree, "chown", "_chrony:_chrony", "/var/log/chrony"], timeout_s=30)
    (tree / "etc/machine-id").touch()  # systemd makes one of its own at first boot
    (tree / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")


def _pin_times(tree: Path, epoch: int) -> None:
    """Nothing in the image is younger than what it was made from."""
    for folder, names, files in os.walk(tree):
        for name in (*names, *files):
            path = os.path.join(folder, name)  # noqa: PTH118  (tens of thousands)
            if os.lstat(path).st_mtime > epoch:
                os.utime(path, (epoch, epoch), follow_symlinks=False)
    os.utime(tree, (epoch, epoch))


def _in(tree: Path, command: Sequence[str], epoch: int) -> None:
    done = subprocess.run(
        ["chroot", tree, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "SOURCE_DATE_EPOCH": str(epoch),
            "PYTHONHASHSEED": "0",
        },
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} in the tree failed: {done.stderr.strip()[-2000:]}")
