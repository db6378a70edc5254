"""A real Linux kernel as NFS client, in a small guest: random file operations against a model, the
server killed during I/O, and two guests that race for the same names."""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.exports.datastore.tree import SessionTree
from appliance.exports.nfs import NfsServer
from tests.support.guest_file_operations import PATTERN, FileOperations
from tests.support.holdfast_program import run, run_json, serving
from tests.support.nfs_guest import NfsGuest
from tests.support.nfs_servers import PATH, nfs_serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
OPERATIONS = int(os.environ.get("HOLDFAST_NFS_OPERATIONS", "250"))
RACES = 40
KILLS = int(os.environ.get("HOLDFAST_KILLS", "4"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NfsServer]:
    tree = SessionTree(tmp_path / "tree", {})
    with nfs_serving(tree) as running:
        yield running
    tree.close()


@pytest.fixture
def pattern(tmp_path: Path) -> Path:
    path = tmp_path / "pattern"
    path.write_bytes(PATTERN)
    return path


@pytest.mark.parametrize("options", ["hard", "hard,sync,noac,rsize=8192,wsize=8192"])
def test_random_file_operations_do_what_the_model_does(
    tmp_path: Path, server: NfsServer, pattern: Path, options: str
) -> None:
    """Content, sizes, modes, times, link counts and listings, also after a new mount."""
    seed = int(os.environ.get("HOLDFAST_SEED", "0")) or random.randrange(1 << 32)
    print(f"seed {seed}")
    operations = FileOperations(seed, "/mnt/w").script(OPERATIONS)
    mount = f"mount_export {server.port} {PATH} /mnt {options} || fail mount"
    script = f"""\
remount() {{ umount /mnt && {mount}; }}
{mount}
mkdir /mnt/w
{operations}
umount /mnt || fail umount
"""
    (tmp_path / "operations.sh").write_text(script)
    with NfsGuest(script, tmp_path, pattern) as guest:
        guest.wait_for_end()


def test_large_folders_holes_and_long_paths(tmp_path: Path, server: NfsServer) -> None:
    """700 entries listed in full, a file of a terabyte, 20 folders deep, open files that were
    removed, and locks of files by their names."""
    script = f"""\
mount_export {server.port} {PATH} /mnt || fail mount
mkdir /mnt/many && cd /mnt/many || fail mkdir
i=0
while [ $i -lt 700 ]; do : >"file-$i-abcdefghijklmnopqrstuvwxyz"; i=$((i + 1)); done
echo 3 >/proc/sys/vm/drop_caches
[ "$(ls | wc -l)" = 700 ] || fail listing
ls -l >/dev/null || fail attributes
for name in file-1*; do rm "$name" || fail rm; done
[ "$(ls | wc -l)" = 589 ] || fail listing after removal
cd / && rm -r /mnt/many || fail rm -r
truncate -s 1099511627776 /mnt/huge || fail truncate
echo end | dd of=/mnt/huge bs=1 seek=1099511627770 conv=notrunc status=none || fail far write
echo 3 >/proc/sys/vm/drop_caches
[ "$(dd if=/mnt/huge bs=1 skip=1099511627770 count=3 status=none)" = end ] || fail far read
dd if=/mnt/huge bs=4096 skip=100000000 count=1 status=none | tr -d '\\000' >/run/hole
[ ! -s /run/hole ] || fail hole
rm /mnt/huge
path=/mnt
i=0
while [ $i -lt 20 ]; do path=$path/folder-with-a-rather-long-name-$i; i=$((i + 1)); done
mkdir -p "$path" && echo deep >"$path/file" || fail deep
[ "$(cat "$path/file")" = deep ] || fail deep read
echo kept >/mnt/open && exec 5</mnt/open && rm /mnt/open || fail open
[ "$(cat <&5)" = kept ] || fail removed while open
exec 5<&-
[ "$(ls -A /mnt | wc -l)" = 1 ] || fail silly name left
statfs=$(stat -f -c %l /mnt)
[ "$statfs" = 255 ] || fail name length $statfs
"""
    with NfsGuest(script, tmp_path) as guest:
        guest.wait_for_end()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def test_a_server_killed_during_io_loses_nothing_that_was_acknowledged(
    tmp_path: Path, pattern: Path
) -> None:
    """kill -9 while the guest writes, syncs and reads, again and again, and a restart: it goes on
    with the handles it has, and every byte is there at the end."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(PATTERN)
    run(tmp_path, "repo", "init")
    point = run_json(tmp_path, "backup", "image", "--vm", "web", disk)["point_id"]
    port = free_port()
    words = ("export", "nfs", point, "--writable", "--portmap", "none", "--port", str(port))
    script = f"""\
mount_export {port} /{point} /mnt hard,timeo=50 || fail mount
round=0
while [ $round -lt {KILLS + 2} ]; do
    for place in 0 1 2 3 4 5 6 7; do
        offset=$((place * 131072 + round % 32 * 4096))
        dd if=/dev/vdb iflag=skip_bytes,count_bytes skip=$((place * 1000 + round * 100)) \\
            count=4096 of=/mnt/disk-0.raw bs=4096 oflag=seek_bytes seek=$offset \\
            conv=notrunc,fsync status=none || fail write
        dd if=/dev/vdb bs=64k count=4 of=/mnt/log-$round-$place conv=fsync status=none || fail log
        echo 3 >/proc/sys/vm/drop_caches
        [ "$(md5sum </mnt/log-$round-$place)" = "$(head -c 262144 /dev/vdb | md5sum)" ] || fail read
        echo "WROTE $round $place"
    done
    round=$((round + 1))
done
umount /mnt || fail umount
mount_export {port} /{point} /mnt || fail second mount
md5sum </mnt/disk-0.raw
ls /mnt | wc -l
"""
    rng = random.Random(random.randrange(1 << 32))
    with ExitStack() as servers:
        process, _ = servers.enter_context(serving(tmp_path, *words))
        with NfsGuest(script, tmp_path, pattern) as guest:
            for kill in range(KILLS):
                place = f"WROTE {kill} {rng.randrange(8)}"
                guest.wait_for_line(place)
                process.kill()
                process.wait()
                process, _ = servers.enter_context(serving(tmp_path, *words))
            lines = guest.wait_for_end(300)
    expected = bytearray(PATTERN)
    for turn in range(KILLS + 2):
        for place_number in range(8):
            start = place_number * 1000 + turn * 100
            offset = place_number * 131072 + turn % 32 * 4096
            expected[offset : offset + 4096] = PATTERN[start : start + 4096]
    assert f"{hashlib.md5(expected).hexdigest()}  -" in lines
    assert str(8 * (KILLS + 2) + 1) in lines


def test_of_two_guests_that_race_for_a_name_one_wins(tmp_path: Path, server: NfsServer) -> None:
    """Exclusive creates, renames of one file and folders made at the same moment: each has one
    winner, whatever each kernel has cached."""
    common = f"""\
mount_export {server.port} {PATH} /mnt hard,actimeo=0 || fail mount
echo READY
read go
i=0
while [ $i -lt {RACES} ]; do
    (set -C; : >"/mnt/lock-$i") 2>/dev/null && echo "LOCK $i"
    mv "/mnt/source-$i" "/mnt/moved-$i-$me" 2>/dev/null && echo "MOVED $i"
    mkdir "/mnt/folder-$i" 2>/dev/null && echo "FOLDER $i"
    i=$((i + 1))
done
"""
    make = f"mount_export {server.port} {PATH} /mnt || fail mount\n"
    sources = f"i=0; while [ $i -lt {RACES} ]; do : >/mnt/source-$i; i=$((i + 1)); done\n"
    with ExitStack() as stack:
        first_script = f"me=one\n{make}{sources}umount /mnt\n{common}"
        guests = [
            stack.enter_context(NfsGuest(script, tmp_path, name=name))
            for name, script in (("one", first_script), ("two", f"me=two\n{common}"))
        ]
        for guest in guests:
            guest.wait_for_line("READY")
        for guest in guests:
            guest.send_line("go")
        said = [line for guest in guests for line in guest.wait_for_end()]
    for kind in ("LOCK", "MOVED", "FOLDER"):
        won = sorted(int(line.split()[1]) for line in said if re.match(f"{kind} ", line))
        assert won == list(range(RACES)), kind
    winners = [sum(line.startswith("LOCK") for line in guest.lines) for guest in guests]
    print(f"locks won: {winners}")
