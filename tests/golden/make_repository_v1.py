"""Makes `repository-v1-rule-N.tar.gz`: small repositories of format version 1, frozen for ever.

    python -m tests.golden.make_repository_v1

Run once per format version and chunk rule, by hand: it makes the archive of the rule that new
repositories get, unless it is there. The one of rule 1 is `repository-v1.tar.gz`. An archive holds
`clear` and `encrypted` (passphrase below), each with two points of one VM with two disks, and
`expected.json` with the BLAKE3 of every disk. The local index is left out: it is no part of the
format.
"""

from __future__ import annotations

import json
import random
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from blake3 import blake3

from appliance.base.consistency import Consistency
from appliance.base.run_context import RunContext
from appliance.base.secret import Secret
from appliance.jobs.backup import back_up
from appliance.repository.chunker import NEW_REPOSITORY_RULE
from appliance.repository.format import BLOCK_BYTES, SEGMENT_BYTES
from appliance.repository.repository import Repository, RepositoryOptions
from appliance.sources.frozen import FrozenDisk, FrozenVm
from tests.support.memory_reader import MemoryReader

ARCHIVES = {
    1: Path(__file__).with_name("repository-v1.tar.gz"),
    2: Path(__file__).with_name("repository-v1-rule-2.tar.gz"),
}
"""By the number of the chunk rule."""
PASSPHRASE = Secret(b"frozen in 2026")
KINDS = {"clear": None, "encrypted": PASSPHRASE}


def disks(generation: int, rule: int) -> list[bytes]:
    """One disk of two segments with holes and text, one that ends inside a block.

    Since rule 2 also one without holes, in which chunks come to every length there is.
    """
    source = random.Random(generation)
    large = bytearray(SEGMENT_BYTES + 50 * BLOCK_BYTES)
    for number in range(12):
        text = f"generation {generation if number > 9 else 0} part {number}\n".encode()
        start = number * 170 * BLOCK_BYTES
        large[start : start + 8 * BLOCK_BYTES] = (text * 4096)[: 8 * BLOCK_BYTES]
    found = [bytes(large), source.randbytes(2 * BLOCK_BYTES + 77)]
    if rule > 1:
        contents = [*range(300), *(number // 40 for number in range(10**4, 10**4 + 400))]
        blocks = [random.Random(n).randbytes(8) * (BLOCK_BYTES // 8) for n in contents]
        blocks[150 + generation] = source.randbytes(8) * (BLOCK_BYTES // 8)
        found.append(b"".join(blocks))
    return found


def frozen_vm(generation: int, rule: int) -> FrozenVm:
    return FrozenVm(
        name="web",
        created_at=datetime(2026, 11, 20 + generation, tzinfo=UTC),
        consistency=Consistency.APPLICATION,
        source="image",
        disks=[
            FrozenDisk(number=number, label=f"disk {number}", reader=MemoryReader(disk))
            for number, disk in enumerate(disks(generation, rule))
        ],
        hardware={"cpus": 2, "firmware": "efi"},
    )


def make(folder: Path, rule: int) -> dict[str, dict[str, list[str]]]:
    expected: dict[str, dict[str, list[str]]] = {}
    for kind, passphrase in KINDS.items():
        path = folder / kind
        Repository.create(path, passphrase=passphrase)
        options = RepositoryOptions(pack_target_bytes=8 << 10, workers=1)
        with Repository.open(path, passphrase=passphrase, options=options) as repository:
            for generation in (1, 2):
                frozen = frozen_vm(generation, rule)
                manifest = back_up(repository, frozen, RunContext.quiet()).manifest
                digests = [blake3(disk).hexdigest() for disk in disks(generation, rule)]
                expected.setdefault(kind, {})[manifest.point_id] = digests
    return expected


def main() -> None:
    path = ARCHIVES[NEW_REPOSITORY_RULE]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "expected.json").write_text(
            json.dumps(make(folder, NEW_REPOSITORY_RULE), indent=1)
        )
        with path.open("xb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            archive.add(folder, arcname=".", filter=_plain)
    print(f"{path}: {path.stat().st_size} bytes")


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without the local index, locks and whoever made it."""
    if set(Path(entry.name).parts) & {"lmdb", "locks", "tmp"}:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
