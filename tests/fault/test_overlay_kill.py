"""A process that writes through the overlay is killed again and again at random moments."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
from pathlib import Path

from appliance.base.units import KIB
from appliance.blocks.overlay import Overlay
from appliance.blocks.overlay_map import Geometry
from tests.support.zero_disk import ZeroDisk

ROUNDS = 80
THREADS = 3
CELLS = 40  # per thread
CELL = 1000  # bytes: neither block nor sector
SMALL = Geometry(block_bytes=4 * KIB, segment_blocks=4)
BASE = ZeroDisk(THREADS * CELLS * CELL)
ACK = struct.Struct("<II")  # thread, number: one pipe write, so never torn


def content(number: int) -> bytes:
    return bytes(CELL) if number % 5 == 0 else struct.pack("<Q", number) * (CELL // 8)


def place(thread: int, number: int) -> int:
    return (number % CELLS * THREADS + thread) * CELL  # neighbours belong to different threads


def run_child(folder: Path, first: list[int], pipe: int) -> None:
    overlay = Overlay.open(folder, BASE, {})

    def write(thread: int) -> None:
        number = first[thread]
        while True:
            if number % 5 == 0:
                overlay.zero_at(place(thread, number), CELL)
            else:
                overlay.write_at(place(thread, number), content(number))
            overlay.flush()
            os.write(pipe, ACK.pack(thread, number))
            number += 1

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run_and_kill(folder: Path, first: list[int], after_acks: int) -> list[int]:
    """Return the last acknowledged number of each thread (`first - 1`: none)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            run_child(folder, first, writer)
        finally:
            os._exit(1)
    os.close(writer)
    received = b""
    while len(received) < after_acks * ACK.size:
        piece = os.read(reader, ACK.size)
        assert piece, "the child died by itself"
        received += piece
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while piece := os.read(reader, 64 * KIB):
        received += piece
    os.close(reader)
    last = [number - 1 for number in first]
    for thread, number in ACK.iter_unpack(received):
        last[thread] = number
    return last


def assert_old_or_new(
    start: int, found: bytes, old: bytes, new: bytes | None, where: object
) -> None:
    """Old as a whole; only a write that was under way may be there, sector by sector."""
    if found == old:
        return
    assert new is not None, where
    for sector in range(start // 512 * 512, start + CELL, 512):
        part = slice(max(0, sector - start), sector + 512 - start)
        assert found[part] in (old[part], new[part]), where


def test_every_acknowledged_write_survives_kill_9(tmp_path: Path) -> None:
    """Whenever it is killed, the session shows every write whose flush had returned."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    folder = tmp_path / "session"
    Overlay.create(folder, BASE, {}, SMALL).close()
    first = [1] * THREADS
    expected: dict[int, bytes] = {}  # by place
    total = 0
    for round_number in range(ROUNDS):
        last = run_and_kill(folder, first, rng.randrange(1, 40))
        overlay = Overlay.open(folder, BASE, {})
        for thread in range(THREADS):
            total += last[thread] - first[thread] + 1
            for number in range(first[thread], last[thread] + 1):
                expected[place(thread, number)] = content(number)
            under_way = last[thread] + 1
            for cell in range(CELLS):
                start = place(thread, cell)
                new = content(under_way) if cell == under_way % CELLS else None
                found = overlay.read_at(start, CELL)
                where = (seed, round_number, thread, cell)
                assert_old_or_new(start, found, expected.get(start, bytes(CELL)), new, where)
                expected[start] = found
            first[thread] = last[thread] + 2
        overlay.close()
    print(f"{total} acknowledged writes over {ROUNDS} kills")
    assert total > ROUNDS
