"""How fast this machine hashes and compresses, without anything around it: the ceiling of a backup.

`python -m tests.perf.bare DISK...` takes the unique non-zero 64 KiB pieces of the disks into memory
first, then times keyed BLAKE3 and zstd-1 over them on two threads. A process of its own, because it
holds the data set in memory. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import blake3
import zstandard

from tests.perf.sparse import data_extents

PIECE_BYTES = 65536
THREADS = 2
_KEY = bytes(range(32))


def pieces(disk: Path) -> Iterator[bytes]:
    """The non-zero 64 KiB pieces of a sparse file, in order."""
    zero = bytes(PIECE_BYTES)
    done = 0
    with disk.open("rb", buffering=0) as file:
        for start, end in data_extents(file.fileno()):
            position = max(done, start - start % PIECE_BYTES)
            file.seek(position)
            while position < end:
                piece = file.read(PIECE_BYTES)
                position += PIECE_BYTES
                if piece != zero[: len(piece)]:
                    yield piece
            done = position


def piece_digest(piece: bytes) -> bytes:
    return blake3.blake3(piece).digest()


def unique_pieces(disks: list[Path]) -> list[bytes]:
    """Each distinct piece once, in the order of its first appearance."""
    seen: dict[bytes, bytes] = {}
    for disk in disks:
        for piece in pieces(disk):
            seen.setdefault(piece_digest(piece), piece)
    return list(seen.values())


def hash_and_compress(data: list[bytes]) -> int:
    compressor = zstandard.ZstdCompressor(level=1)
    stored = 0
    for piece in data:
        blake3.blake3(piece, key=_KEY).digest()
        stored += len(compressor.compress(piece))
    return stored


def measure(data: list[bytes]) -> dict[str, float]:
    stored = [0] * THREADS

    def work(number: int) -> None:
        stored[number] = hash_and_compress(data[number::THREADS])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    unique_bytes = sum(map(len, data))
    return {
        "seconds": seconds,
        "unique_bytes": unique_bytes,
        "compressed_bytes": sum(stored),
        "mb_per_s": unique_bytes / seconds / 1e6,
    }


if __name__ == "__main__":
    print(json.dumps(measure(unique_pieces([Path(word) for word in sys.argv[1:]]))))
