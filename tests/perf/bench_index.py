"""10 million synthetic chunks: index insert, look-up, GC mark and rebuild rates, bytes per entry.

The one section that needs interfaces inside the repository instead of the command line: packs of
chunks are made up (only their footers exist), index segments and trees are real.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from appliance.base.run_context import RunContext
from appliance.repository.format import (
    DIGEST_BYTES,
    FOOTER_ENTRY,
    NODE_CHILDREN,
    PACK_HEADER,
    PackKind,
    RecordKind,
    index_segment_name,
)
from appliance.repository.gc import live_bytes
from appliance.repository.image_tree import LeafEntry, encode_inner, encode_leaf
from appliance.repository.mark import Mark, Root, check_complete
from appliance.repository.pack import SealedPack
from appliance.repository.repository import Repository
from appliance.repository.write_run import WriteRun
from tests.perf.context import Bench
from tests.perf.table import Row, Samples

NAME = "index"
ENTRIES = 10_000_000
QUICK_ENTRIES = 200_000
_PER_PACK = 1000
_PACKS_PER_SEGMENT = 16
_PER_LEAF = 128
_STORED_BYTES = 27_000
_UNITS = {
    "insert": "entries/s",
    "look-up": "entries/s",
    "GC mark": "entries/s",
    "rebuild": "entries/s",
    "index": "bytes/entry",
    "GC mark memory": "bytes/entry",
}


def run(bench: Bench) -> list[Row]:
    entries = QUICK_ENTRIES if bench.quick else ENTRIES
    with bench.folder("index") as folder:
        measured = measure(entries, folder, bench.seed)
    return [
        Row(
            section=NAME,
            measure=f"{entries:,} chunks: {name}",
            unit=_UNITS[name],
            ours=Samples(values=(value,)),
        )
        for name, value in measured.items()
    ]


def measure(entries: int, folder: Path, seed: int = 1) -> dict[str, float]:
    """Return rates in entries per second and sizes in bytes per entry, by name as in `_UNITS`."""
    path = folder / "r"
    Repository.create(path)
    with Repository.open(path) as repository:
        digests = _digests(entries, seed)
        segments = list(_segments(digests, seed))
        started_s = time.perf_counter()
        for number, packs in enumerate(segments):
            repository.index.insert(index_segment_name("insert", number), packs)
        insert_s = time.perf_counter() - started_s
        index_bytes = repository.index.size_bytes() / entries
        looked_up, look_up_s = _look_up(repository, digests, seed)
        root = _tree(repository, digests)
        started_s = time.perf_counter()
        mark = Mark(repository)
        mark.add([Root(root, "bench")])
        check_complete(repository, mark)
        live_bytes(repository, mark, repository.index.packs())
        mark_s = time.perf_counter() - started_s
        names = [index_segment_name("rebuild", number) for number in range(len(segments))]
        for name, packs in zip(names, segments, strict=True):
            repository.write_segment(name, packs)
        segments.clear()
        started_s = time.perf_counter()
        repository.index.refill((name, repository.read_segment(name)) for name in names)
        rebuild_s = time.perf_counter() - started_s
        assert repository.index.entry_count() == entries
        return {
            "insert": entries / insert_s,
            "look-up": looked_up / look_up_s,
            "GC mark": entries / mark_s,
            "rebuild": entries / rebuild_s,
            "index": index_bytes,
            "GC mark memory": mark.live.held_bytes / entries,
        }


def _digests(entries: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(entries * DIGEST_BYTES)


def _segments(digests: bytes, seed: int) -> Iterator[list[SealedPack]]:
    random = np.random.default_rng(seed + 1)
    rows = np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    packs = []
    for start in range(0, len(rows), _PER_PACK):
        part = rows[start : start + _PER_PACK]
        entries = np.zeros((len(part), FOOTER_ENTRY.size), dtype=np.uint8)
        entries[:, :DIGEST_BYTES] = part
        places = np.empty((len(part), 3), dtype="<u4")
        places[:, 0] = PACK_HEADER.size + np.arange(len(part)) * _STORED_BYTES
        places[:, 1] = _STORED_BYTES
        places[:, 2] = 65536
        entries[:, DIGEST_BYTES : DIGEST_BYTES + 12] = places.view(np.uint8)
        entries[:, DIGEST_BYTES + 12] = RecordKind.CHUNK
        size_bytes = PACK_HEADER.size + len(part) * _STORED_BYTES
        packs.append(SealedPack(random.bytes(16), PackKind.DATA, size_bytes, entries.tobytes()))
        if len(packs) == _PACKS_PER_SEGMENT:
            yield packs
            packs = []
    if packs:
        yield packs


def _look_up(repository: Repository, digests: bytes, seed: int) -> tuple[int, float]:
    """Half of what is looked up is there, in groups as a writer asks for them."""
    random = np.random.default_rng(seed + 2)
    count = len(digests) // DIGEST_BYTES
    chosen = random.integers(0, count, min(count, 500_000)).tolist()
    present = [digests[n * DIGEST_BYTES : (n + 1) * DIGEST_BYTES] for n in chosen]
    absent = random.bytes(len(present) * DIGEST_BYTES)
    asked = present + [absent[at : at + DIGEST_BYTES] for at in range(0, len(absent), DIGEST_BYTES)]
    random.shuffle(asked)
    found = 0
    started_s = time.perf_counter()
    for start in range(0, len(asked), 128):
        found += len(repository.index.known(asked[start : start + 128]))
    seconds = time.perf_counter() - started_s
    assert found > 0
    return len(asked), seconds


def _tree(repository: Repository, digests: bytes) -> bytes:
    """Store the tree of a disk that holds every digest once; return its root."""
    step = _PER_LEAF * DIGEST_BYTES
    with repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run:
        children = [
            _node(repository, run, RecordKind.LEAF, _leaf(digests[at : at + step]))
            for at in range(0, len(digests), step)
        ]
        for level in (1, 2, 3):
            children = [
                _node(repository, run, RecordKind.INNER, encode_inner(level, dict(enumerate(part))))
                for part in (
                    children[at : at + NODE_CHILDREN]
                    for at in range(0, len(children), NODE_CHILDREN)
                )
            ]
        run.flush()
    return children[0]


def _leaf(digests: bytes) -> bytes:
    return encode_leaf(
        [
            LeafEntry(number * 16, 16, digests[at : at + DIGEST_BYTES])
            for number, at in enumerate(range(0, len(digests), DIGEST_BYTES))
        ]
    )


def _node(repository: Repository, run: WriteRun, kind: RecordKind, raw: bytes) -> bytes:
    digest = repository.digester.of(kind, raw)
    run.chunks.insert_many(kind, [(digest, raw)])
    return digest
