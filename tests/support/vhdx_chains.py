"""A differencing chain of two VHDX files in a folder."""

from __future__ import annotations

import random
from pathlib import Path

from appliance.base.units import MIB
from tests.support.vhdx_files import PARTIAL, PRESENT, MadeVhdx


def write_chain(folder: Path, content: bytes) -> Path:
    """`child.vhdx` over `base.vhdx`: every sector in the one or the other, at random."""
    rng = random.Random(1)
    parent = MadeVhdx(disk_bytes=len(content))
    child = MadeVhdx(disk_bytes=len(content), parent=parent, parent_path=".\\base.vhdx")
    for block in range(-(-len(content) // MIB)):
        whole = bytearray(content[block * MIB : (block + 1) * MIB].ljust(MIB, b"\0"))
        parent.blocks[block] = (PRESENT, bytes(whole))
        child.bits[block] = [rng.randrange(2) for _ in range(2048)]
        for number, bit in enumerate(child.bits[block]):
            if not bit:
                whole[number * 512 : (number + 1) * 512] = b"\xdd" * 512
        child.blocks[block] = (PARTIAL, bytes(whole))
    parent.write(folder / "base.vhdx")
    return child.write(folder / "child.vhdx")
