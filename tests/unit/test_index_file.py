"""An index file that is shorter than LMDB's last page number says: cut, or just never written."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from appliance.repository.format import FOOTER_ENTRY, PackKind, RecordKind
from appliance.repository.index import ChunkIndex, IndexDamagedError
from appliance.repository.pack import SealedPack

PAGE_BYTES = 4096


def pack_of(source: random.Random, entries: int) -> SealedPack:
    rows = [
        FOOTER_ENTRY.pack(source.randbytes(32), 48, 100, 100, RecordKind.CHUNK, 0)
        for _ in range(entries)
    ]
    return SealedPack(source.randbytes(16), PackKind.DATA, 1 << 20, b"".join(rows))


def missing_bytes(index: ChunkIndex, folder: Path) -> int:
    """How much shorter the file is than the last page number says."""
    pages: int = index._env.info()["last_pgno"] + 1
    return pages * PAGE_BYTES - (folder / "data.mdb").stat().st_size


def shortened(folder: Path) -> set[bytes]:
    """Make an index whose file got no last pages; return the digests in it."""
    source = random.Random(1)
    index = ChunkIndex(folder)
    digests: set[bytes] = set()
    for number in range(100):
        good, bad = pack_of(source, 40), pack_of(source, source.choice([50, 400, 1500]))
        index.insert(f"index/{number}", [good, bad])
        digests |= {good.entries[at : at + 32] for at in range(0, len(good.entries), 48)}
        damaged = [bad.entries[at : at + 32] for at in range(0, len(bad.entries), 48)]
        index.quarantine((digest, bad.pack_id) for digest in damaged)
        index.drop_bad(damaged)
        if missing_bytes(index, folder) > 0:
            index.close()
            return digests
    pytest.fail("the file always had its full length")


def test_an_index_whose_last_pages_were_never_written_opens(tmp_path: Path) -> None:
    """Clean-up leaves such a file; it is whole, gets its length, and is written on."""
    digests = shortened(tmp_path)
    for _ in range(2):
        index = ChunkIndex(tmp_path)
        assert {digest for digest, _ in index.entries()} == digests
        assert missing_bytes(index, tmp_path) <= 0
        more = pack_of(random.Random(2), 3000)
        index.insert("index/more", [more])
        digests |= {more.entries[at : at + 32] for at in range(0, len(more.entries), 48)}
        index.close()


def test_an_index_that_was_cut_is_refused(tmp_path: Path) -> None:
    """Pages in use are missing: an error that says so, not the end of the process."""
    source = random.Random(1)
    index = ChunkIndex(tmp_path)
    index.insert("index/1", [pack_of(source, 3000)])
    index.close()
    data = tmp_path / "data.mdb"
    size_bytes = data.stat().st_size
    os.truncate(data, size_bytes // 2 // PAGE_BYTES * PAGE_BYTES)
    for _ in range(2):
        with pytest.raises(IndexDamagedError, match="cut short"):
            ChunkIndex(tmp_path)


DIGEST = bytes(32)
LOOKING_UP: list[Callable[[ChunkIndex], object]] = [
    lambda index: index.find(DIGEST),
    lambda index: index.find_many([DIGEST]),
    lambda index: index.known([DIGEST]),
    lambda index: list(index.entries()),
    lambda index: list(index.rows()),
    lambda index: index.entry_count(),
    lambda index: index.packs(),
    lambda index: index.segments(),
    lambda index: index.quarantined(),
    lambda index: index.is_quarantined(DIGEST),
    lambda index: index.generation(),
    lambda index: index.announcement(),
]


@pytest.mark.parametrize("look_up", LOOKING_UP)
def test_a_damaged_page_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_up: Callable[[ChunkIndex], object]
) -> None:
    """Whatever looks something up: never an error of LMDB, which no operator can act upon.

    Made up, because LMDB itself does not survive every damage.
    """

    class Damaged:
        def begin(self, *_: object, **__: object) -> object:
            raise lmdb.CorruptedError("Located page was wrong type")

    index = ChunkIndex(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(index, "_env", Damaged())
        with pytest.raises(IndexDamagedError, match="wrong type"):
            look_up(index)
    index.close()
