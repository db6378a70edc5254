"""iSCSI as others speak it: libiscsi's programs, and QEMU with ntfs-3g on what it shows."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.needs import needs

PROGRAMS = ("tgtd", "mkntfs", "ntfs-3g", "fusermount3", "iscsi-ls", "iscsi-inq")
PASSWORD = "sixteen-letters!"
_TIMEOUT_S = 60
PARTITION_OFFSET = 1 << 20


def needs_iscsi() -> None:
    needs(*PROGRAMS, "qemu-img", "qemu-io", "qemu-storage-daemon")


def url(document: Any, lun: int = 1, *, password: str = PASSWORD) -> str:
    found = next(each for each in document["luns"] if each["lun"] == lun)
    return str(found["uri"]).replace("iscsi://", f"iscsi://{document['chap_user']}%{password}@", 1)


def says(*words: str | Path) -> str:
    """Run a client to its end; what it says, identifiers that are no text included."""
    done = subprocess.run(
        [*map(str, words)],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{words[0]}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def shown(disk_url: str, folder: Path, *, offset: int = 0) -> Iterator[Path]:
    """A LUN from a byte on, as a file that may be written, through QEMU's initiator."""
    image = folder / "lun"
    folder.mkdir(exist_ok=True)
    image.touch()
    daemon = subprocess.Popen(
        [
            "qemu-storage-daemon",
            "--object",
            f"secret,id=chap,data={_parts(disk_url)[1]}",
            "--blockdev",
            f"driver=iscsi,node-name=lun,transport=tcp,{_options(disk_url)}",
            "--blockdev",
            f"driver=raw,node-name=part,file=lun,offset={offset}",
            "--export",
            f"type=fuse,id=part,node-name=part,mountpoint={image},writable=on,growable=off",
            "--daemonize",
            "--pidfile",
            str(folder / "pid"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert daemon.wait(timeout=_TIMEOUT_S) == 0, daemon.communicate()[0]
    daemon.communicate()
    pid = int((folder / "pid").read_text())
    try:
        yield image
    finally:
        _end(pid)


@contextmanager
def mounted(disk_url: str, folder: Path) -> Iterator[Path]:
    """The NTFS volume of a LUN, mounted as a host would: through an initiator, read and write."""
    with shown(disk_url, folder, offset=PARTITION_OFFSET) as image:
        mount = folder / "mount"
        mount.mkdir(exist_ok=True)
        says("ntfs-3g", "-o", "sync", image, mount)
        try:
            yield mount
        finally:
            says("fusermount3", "-u", mount)


def _options(disk_url: str) -> str:
    """QEMU's own words for a URL."""
    user, _, portal, target, lun = _parts(disk_url)
    return f"portal={portal},target={target},lun={lun},user={user},password-secret=chap"


def _parts(disk_url: str) -> list[str]:
    """User, password, portal, target and LUN of iscsi://user%password@portal/target/lun."""
    account, _, rest = disk_url.removeprefix("iscsi://").partition("@")
    return [*account.split("%"), *rest.split("/")]


def _end(pid: int) -> None:
    """Let a daemon of ours end and wait for it, though it is no child."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        assert select.select([fd], [], [], _TIMEOUT_S)[0], "qemu-storage-daemon does not end"
    finally:
        os.close(fd)
