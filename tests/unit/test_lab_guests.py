"""The journal reader: what it must find wrong, and the image helpers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lab.guests
from lab.guests import JournalError, copy_sparse, read_journal
from lab.guests.journal import JOURNAL_BYTES, JOURNAL_OFFSET, RECORD_BYTES, record_bytes
from tests.support.needs import needs

FILES = Path(lab.guests.__file__).with_name("files")


class MemoryDisk:
    def __init__(self, journal: bytes) -> None:
        self._journal = journal.ljust(JOURNAL_BYTES, b"\0")

    def read_at(self, offset: int, length: int) -> bytes:
        assert (offset, length) == (JOURNAL_OFFSET, JOURNAL_BYTES)
        return self._journal


def journal_of(count: int) -> bytearray:
    return bytearray(b"".join(record_bytes(number) for number in range(1, count + 1)))


@settings(max_examples=20)
@given(st.integers(0, 300))
def test_a_whole_journal_is_its_numbers(count: int) -> None:
    """1 to n, from a reader."""
    assert read_journal(MemoryDisk(bytes(journal_of(count)))) == list(range(1, count + 1))


@settings(max_examples=50)
@given(st.integers(1, 60), st.data())
def test_any_flipped_bit_is_found(count: int, data: st.DataObject) -> None:
    """Every byte of a record counts, so nothing torn or stale passes."""
    raw = journal_of(count)
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(JournalError):
        read_journal(MemoryDisk(bytes(raw)))


@settings(max_examples=30)
@given(st.integers(2, 60), st.data())
def test_a_lost_record_in_the_middle_is_found(count: int, data: st.DataObject) -> None:
    """A write that vanished before a later one that survived is a gap, not an end."""
    raw = journal_of(count)
    lost = data.draw(st.integers(0, count - 2))
    raw[lost * RECORD_BYTES : (lost + 1) * RECORD_BYTES] = bytes(RECORD_BYTES)
    with pytest.raises(JournalError):
        read_journal(MemoryDisk(bytes(raw)))


def test_a_sparse_copy_is_equal_and_stays_sparse(tmp_path: Path) -> None:
    """Data at both ends and in the middle arrives; the holes take no space."""
    source, target = tmp_path / "source", tmp_path / "target"
    size_bytes = 64 << 20
    with source.open("wb") as file:
        file.truncate(size_bytes)
        for offset in (0, 20 << 20, size_bytes - 5000):
            file.seek(offset)
            file.write(os.urandom(5000))
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20


def test_guest_scripts_are_valid_shell() -> None:
    """A syntax error shows here, not as a guest that never gets ready."""
    needs("busybox")
    scripts = sorted(FILES.glob("*.sh"))
    assert len(scripts) >= 5
    for script in scripts:
        subprocess.run(["busybox", "sh", "-n", script], check=True, timeout=20)


def test_the_guest_writes_the_layout_the_reader_expects() -> None:
    """The two halves of the journal, shell and Python, agree on record and capacity."""
    text = (FILES / "tiny-init.sh").read_text()
    assert f"bs={RECORD_BYTES} " in text
    limit = re.search(r'"\$number" -le (\d+)', text)
    assert limit and int(limit[1]) == JOURNAL_BYTES // RECORD_BYTES
