"""Format version 1 of a session folder, byte by byte: what was written once is read for ever."""

from __future__ import annotations

import json
from pathlib import Path

from appliance.blocks.overlay import Overlay
from appliance.blocks.overlay_journal import NO_SLOT, Kind, Record, encode_group, encode_header
from appliance.blocks.overlay_map import Geometry
from tests.support.memory_device import MemoryDevice

SESSION_ID = bytes(range(16))
SIZE = 5 * 4 * 512 - 100  # five segments of four blocks of 512 bytes, the last one shorter

SESSION_JSON = """{
  "format": "holdfast-overlay",
  "version": 1,
  "session_id": "000102030405060708090a0b0c0d0e0f",
  "size_bytes": 10140,
  "block_bytes": 512,
  "segment_blocks": 4,
  "identity": {
    "point_id": "20261120T031500Z-000000000001",
    "disk": 0
  }
}"""
IDENTITY = json.loads(SESSION_JSON)["identity"]

HEADER = bytes.fromhex(
    "48464f564c4a4e4c 01000000 20000000"  # HFOVLJNL, version, bytes of a record
    "000102030405060708090a0b0c0d0e0f 00020000 04000000"  # session id, block, segment
    "0000000000000000000000000000000000000000 75b1ee35"  # reserved, CRC32C
)
FIRST_FLUSH = bytes.fromhex(
    # magic kind flags commit           segment  slot     first    amount   CRC32C
    "484a  01   00   0100000000000000 02000000 00000000 01000000 02000000 1b384eec"
    "484a  02   01   0100000000000000 00000000 ffffffff 03000000 01000000 4f2bb871"
)
SECOND_FLUSH = bytes.fromhex(
    "484a  03   01   0200000000000000 03000000 ffffffff 00000000 02000000 80f0b43d"
)


def test_the_journal_is_written_as_version_1_says() -> None:
    """Header and records are these bytes."""
    assert encode_header(SESSION_ID, 512, 4) == HEADER
    data, zero = Record(Kind.DATA, 2, 0, 1, 2), Record(Kind.ZERO, 0, NO_SLOT, 3, 1)
    assert encode_group([data, zero], 1) == FIRST_FLUSH
    assert encode_group([Record(Kind.ZERO_SEGMENTS, 3, NO_SLOT, 0, 2)], 2) == SECOND_FLUSH


def test_a_session_of_version_1_opens(tmp_path: Path) -> None:
    """These files show data, zeros and base where version 1 says, and can be written on."""
    (tmp_path / "session.json").write_text(SESSION_JSON)
    (tmp_path / "journal").write_bytes(HEADER + FIRST_FLUSH + SECOND_FLUSH)
    (tmp_path / "data").write_bytes(b"?" * 512 + b"1" * 512 + b"2" * 512)
    expected = bytearray(b"B" * SIZE)
    expected[3 * 512 : 4 * 512] = bytes(512)
    expected[9 * 512 : 11 * 512] = b"1" * 512 + b"2" * 512
    expected[12 * 512 :] = bytes(SIZE - 12 * 512)
    overlay = Overlay.open(tmp_path, MemoryDevice(b"B" * SIZE), IDENTITY)
    assert overlay.read_at(0, SIZE) == expected
    assert overlay.stats().dirty_bytes == 1024
    overlay.write_at(SIZE - 1, b"!")
    overlay.close()
    expected[-1:] = b"!"
    overlay = Overlay.open(tmp_path, MemoryDevice(b"B" * SIZE), IDENTITY)
    assert overlay.read_at(0, SIZE) == expected
    overlay.close()


def test_a_new_session_file_has_the_fields_of_version_1(tmp_path: Path) -> None:
    """Field names and types of `session.json` are part of the format."""
    tiny = Geometry(block_bytes=512, segment_blocks=4)
    Overlay.create(tmp_path / "s", MemoryDevice(bytes(SIZE)), IDENTITY, tiny).close()
    found = json.loads((tmp_path / "s" / "session.json").read_text())
    assert len(found["session_id"]) == 32
    assert found | {"session_id": SESSION_ID.hex()} == json.loads(SESSION_JSON)
