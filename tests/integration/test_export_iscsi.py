"""`holdfast export iscsi` with clients that nobody here wrote: libiscsi, QEMU and ntfs-3g."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.holdfast_program import run, run_json, serving
from tests.support.iscsi_clients import PASSWORD, mounted, needs_iscsi, says, url

MIB = 1 << 20
CONTENT = os.urandom(3 * MIB) + bytes(5 * MIB) + os.urandom(MIB // 2)
SECOND = os.urandom(MIB)
pytestmark = pytest.mark.integration


@pytest.fixture
def point(tmp_path: Path) -> str:
    needs_iscsi()
    for name, content in (("disk.raw", CONTENT), ("second.raw", SECOND)):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    run(tmp_path, "repo", "init")
    disks = (tmp_path / "disk.raw", tmp_path / "second.raw")
    return str(run_json(tmp_path, "backup", "image", "--vm", "web", *disks)["point_id"])


def words(home: Path, point: str, *more: str) -> tuple[str, ...]:
    file = str(home / "password")
    return ("export", "iscsi", point, "--port", "0", "--password-file", file, *more)


def assert_nothing_is_left(port: str) -> None:
    """Neither a tgtd of this port nor a mount, soon after the server was killed."""
    ends_s = time.monotonic() + 20
    while True:
        lines = says("ps", "-eo", "args").splitlines()
        running = [line for line in lines if line.startswith("tgtd") and line.endswith(port)]
        mounts = Path("/proc/mounts").read_text().count("/holdfast-iscsi-")
        if not running and not mounts:
            return
        assert time.monotonic() < ends_s, (running, mounts)
        time.sleep(0.02)


def vhdx_content(path: Path, size: int) -> bytes:
    """The disk inside a VHDX file, as QEMU reads it."""
    raw = path.parent.parent / "content.raw"
    says("qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw)
    content = raw.read_bytes()
    raw.unlink()
    assert len(content) == size
    return content


def test_a_host_finds_a_sound_vhdx_of_every_disk_on_the_volume(tmp_path: Path, point: str) -> None:
    """One LUN, one NTFS volume; ntfs-3g reads it, QEMU finds the VHDX files whole and equal."""
    with serving(tmp_path, *words(tmp_path, point, "--writable", "--discard")) as (_, document):
        assert document["target"] in says("iscsi-ls", url(document).rsplit("/", 2)[0])
        with mounted(url(document), tmp_path / "host") as volume:
            assert {each.name for each in volume.iterdir()} >= {"disk-0.vhdx", "disk-1.vhdx"}
            for name, content in (("disk-0.vhdx", CONTENT), ("disk-1.vhdx", SECOND)):
                says("qemu-img", "check", "-f", "vhdx", volume / name)
                assert vhdx_content(volume / name, len(content)) == content
    assert not list((tmp_path / "overlays").rglob("layout.json"))


def test_a_lun_is_known_by_a_stable_identity(tmp_path: Path, point: str) -> None:
    """Vendor, product, serial number and identifier stay the same over restarts."""
    seen = []
    for _ in range(2):
        with serving(tmp_path, *words(tmp_path, point)) as (_, document):
            pages = [
                says("iscsi-inq", "-e", "1", "-c", page, url(document)) for page in ("128", "131")
            ]
            seen.append((document["target"], says("iscsi-inq", url(document)), *pages))
            assert document["luns"][0]["serial"] in pages[0]
    assert seen[0] == seen[1]
    assert "Vendor:Holdfast" in seen[0][1]


def test_what_a_host_wrote_is_there_after_kill_9(tmp_path: Path, point: str) -> None:
    """A file beside the disks, and bytes inside a VHDX; tgtd and mount go with the server."""
    written = os.urandom(MIB // 4)
    export = words(tmp_path, point, "--writable")
    with serving(tmp_path, *export) as (process, document):
        with mounted(url(document), tmp_path / "host") as volume:
            (volume / "checkpoint.avhdx").write_bytes(written)
            says("qemu-io", "-f", "vhdx", "-c", "write -P 0x5a 1M 64k", volume / "disk-0.vhdx")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert_nothing_is_left(document["portal"].rpartition(":")[2])
    expected = bytearray(CONTENT)
    expected[MIB : MIB + 65536] = b"\x5a" * 65536
    with (
        serving(tmp_path, *export) as (_, document),
        mounted(url(document), tmp_path / "host") as volume,
    ):
        assert (volume / "checkpoint.avhdx").read_bytes() == written
        says("qemu-img", "check", "-f", "vhdx", volume / "disk-0.vhdx")
        assert vhdx_content(volume / "disk-0.vhdx", len(CONTENT)) == expected
        assert vhdx_content(volume / "disk-1.vhdx", len(SECOND)) == SECOND


def test_raw_luns_show_the_disks_and_take_no_writes_unless_asked(
    tmp_path: Path, point: str
) -> None:
    """The fall-back for what cannot be a VHDX: a LUN per disk, read-only by default."""
    with serving(tmp_path, *words(tmp_path, point, "--raw")) as (_, document):
        for lun, content in ((1, CONTENT), (2, SECOND)):
            out = tmp_path / f"lun-{lun}.raw"
            says("qemu-img", "convert", "-f", "raw", "-O", "raw", url(document, lun), out)
            assert out.read_bytes() == content
        refused = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 4k", url(document)],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert refused.returncode or b"failed" in refused.stderr + refused.stdout


def test_a_stranger_is_not_let_in(tmp_path: Path, point: str) -> None:
    """Neither with another password, nor from an initiator that was not named."""
    name = "iqn.1991-05.com.microsoft:hv1"
    export = words(tmp_path, point, "--initiator", name)

    def login(document: Any, initiator: str, password: str) -> int:
        done = subprocess.run(
            ["iscsi-inq", "-i", initiator, url(document, password=password)],
            capture_output=True,
            timeout=60,
            check=False,
        )
        return done.returncode

    with serving(tmp_path, *export) as (_, document):
        assert login(document, name, PASSWORD) == 0
        assert login(document, name, "another-password") != 0
        assert login(document, "iqn.1991-05.com.microsoft:hv2", PASSWORD) != 0


def test_nothing_is_served_to_everybody_by_default(tmp_path: Path, point: str) -> None:
    """Beyond loopback one says who may log in."""
    done = run(tmp_path, "export", "iscsi", point, "--bind", "0.0.0.0", expect=2)
    assert "--initiator" in done.stderr


def test_a_new_password_is_shown_once_and_not_kept(tmp_path: Path, point: str) -> None:
    """Without --password-file one is made; no file of ours holds it."""
    with serving(tmp_path, "export", "iscsi", point, "--port", "0") as (_, document):
        says("iscsi-inq", url(document, password=document["password"]))
        found = subprocess.run(
            ["grep", "-r", "-l", document["password"], str(tmp_path)],
            capture_output=True,
            check=False,
        )
        assert found.stdout == b""
