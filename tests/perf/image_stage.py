"""What happens inside a build of the bench images: a tree becomes a disk, then a later disk.

Runs as a hook of mmdebstrap (`python -m tests.perf.image_stage first|second TREE WORK`), so that
it sees files with their owners. `first` freezes the tree and makes an ext4 disk of it; `second`
carries the differences between the frozen and the present tree into a copy of that disk IN PLACE,
so that untouched files keep their block addresses, as they do on a disk that lived on. debugfs does
it: no loop device, no root. Beside files that came and went, a log grows and pages of a database
file are rewritten where they are.

Not carried over: owners and modes of changed files, hard links between them. The disks are only
ever read as bytes.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.base.units import MIB

REVISION = 1  # raise it when a change here changes the disks
PARTITION_BYTES = MIB  # where the one partition starts, as partitioning tools have it
BLOCK_BYTES = 4096
PAGE_BYTES = 8192
DATABASE = "var/lib/bench/pages.db"
DATABASE_PAGES = 64 * MIB // PAGE_BYTES
REWRITTEN_PAGES = DATABASE_PAGES // 20
LOG = "var/log/bench.log"
LOG_BYTES = 16 * MIB
LOG_GROWTH_BYTES = 8 * MIB
SEED = 20
_TIMEOUT_S = 300
_WORDS = ["accepted", "connection", "from", "session", "opened", "closed", "user", "timeout", "GET"]


def first(tree: Path, work: Path) -> None:
    name, size, uuid = (work / "disk").read_text().split()
    rng = random.Random(f"{SEED} {name}")
    (tree / LOG).write_bytes(log_lines(rng, LOG_BYTES))
    (tree / DATABASE).parent.mkdir(parents=True, exist_ok=True)
    (tree / DATABASE).write_bytes(b"".join(page(rng) for _ in range(DATABASE_PAGES)))
    frozen = work / "frozen"
    # --one-file-system: mmdebstrap has /proc and friends mounted while hooks run.
    _run("cp", "-a", "--one-file-system", str(tree), str(frozen))
    make_disk(frozen, work / f"{name}.raw", int(size), uuid)


def second(tree: Path, work: Path) -> None:
    name = (work / "disk").read_text().split()[0]
    disk = work / f"{name}-later.raw"
    _run("cp", "--sparse=always", str(work / f"{name}.raw"), str(disk))
    rng = random.Random(f"{SEED} {name} later")
    with (tree / LOG).open("ab") as log:
        log.write(log_lines(rng, LOG_GROWTH_BYTES))
    script = work / "debugfs.script"
    script.write_text("\n".join(change_commands(work / "frozen", tree)) + "\n")
    _run("debugfs", "-w", "-f", str(script), f"{disk}?offset={PARTITION_BYTES}")
    rewrite_pages(disk, rng)
    shutil.rmtree(work / "frozen")


def make_disk(tree: Path, disk: Path, size_bytes: int, uuid: str) -> None:
    """An MBR disk with one ext4 partition that holds `tree`."""
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    table = f"label: dos\nstart={PARTITION_BYTES // 512}, type=83, bootable\n"
    _run("sfdisk", "--quiet", str(disk), text=table)
    blocks = (size_bytes - PARTITION_BYTES) // BLOCK_BYTES
    options = f"offset={PARTITION_BYTES},hash_seed={uuid},nodiscard"
    _run(
        *["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), "-U", uuid],
        *["-E", options, "-d", str(tree), str(disk), str(blocks)],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What tells an untouched name of a tree from a changed one."""

    kind: int  # stat.S_IFMT
    size_bytes: int = 0
    modified_ns: int = 0
    target: str = ""  # of a symbolic link


def change_commands(old: Path, new: Path) -> Iterator[str]:
    """debugfs commands that turn the content of `old` into that of `new`."""
    before, after = tree_state(old), tree_state(new)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    for path in sorted(changed & before.keys(), reverse=True):  # children before their folder
        folder, _, name = path.rpartition("/")
        yield f'cd "/{folder}"'
        yield f'{"rmdir" if stat.S_ISDIR(before[path].kind) else "rm"} "{name}"'
    for path in sorted(changed & after.keys()):  # a folder before its children
        folder, _, name = path.rpartition("/")
        command = _create_command(new / path, name, after[path])
        if command:
            yield f'cd "/{folder}"'
            yield command


def _create_command(source: Path, name: str, entry: Entry) -> str | None:
    if stat.S_ISREG(entry.kind):
        return f'write "{source}" "{name}"'
    if stat.S_ISLNK(entry.kind):
        return f'symlink "{name}" "{entry.target}"'
    return f'mkdir "{name}"' if stat.S_ISDIR(entry.kind) else None


def tree_state(tree: Path) -> dict[str, Entry]:
    """Path to entry; other file systems mounted in the tree are left out."""
    device = tree.stat().st_dev
    state: dict[str, Entry] = {}
    for folder, names, files in os.walk(tree):
        names[:] = [name for name in names if Path(folder, name).lstat().st_dev == device]
        for name in [*names, *files]:
            path = Path(folder, name)
            if not re.search(r'["\\\n]', name):  # debugfs has no way to quote these
                state[str(path.relative_to(tree))] = _entry(path)
    return state


def _entry(path: Path) -> Entry:
    info = path.lstat()
    kind = stat.S_IFMT(info.st_mode)
    if stat.S_ISLNK(kind):
        return Entry(kind=kind, target=str(path.readlink()))
    if stat.S_ISREG(kind):
        return Entry(kind=kind, size_bytes=info.st_size, modified_ns=info.st_mtime_ns)
    return Entry(kind=kind)


def rewrite_pages(disk: Path, rng: random.Random) -> None:
    """Overwrite some pages of the database file at the disk addresses they already have."""
    target = f"{disk}?offset={PARTITION_BYTES}"
    blocks = [int(b) for b in _run("debugfs", "-R", f"blocks /{DATABASE}", target).split()]
    per_page = PAGE_BYTES // BLOCK_BYTES
    if len(blocks) != DATABASE_PAGES * per_page:
        raise ValueError(f"{DATABASE} has {len(blocks)} blocks")
    with disk.open("r+b") as file:
        for number in sorted(rng.sample(range(DATABASE_PAGES), REWRITTEN_PAGES)):
            data = page(rng)
            for part in range(per_page):
                file.seek(PARTITION_BYTES + blocks[number * per_page + part] * BLOCK_BYTES)
                file.write(data[part * BLOCK_BYTES : (part + 1) * BLOCK_BYTES])


def page(rng: random.Random) -> bytes:
    """A database page: rows of numbers and words, about half of it incompressible."""
    noise = rng.randbytes(PAGE_BYTES // 2)
    rows = " ".join(rng.choices(_WORDS, k=PAGE_BYTES // 8)).encode()
    return noise + rows[: PAGE_BYTES // 2].ljust(PAGE_BYTES // 2, b"\0")


def log_lines(rng: random.Random, size_bytes: int) -> bytes:
    lines: list[bytes] = []
    length = 0
    while length < size_bytes:
        words = " ".join(rng.choices(_WORDS, k=8))
        line = f"{rng.randrange(1 << 31)} host app[{rng.randrange(9999)}]: {words}\n".encode()
        lines.append(line)
        length += len(line)
    return b"".join(lines)[:size_bytes]


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise ValueError(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    {"first": first, "second": second}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
