"""Memory does not grow with the disk: 62 TiB of it, 1 GiB of that data, in one backup."""

from __future__ import annotations

import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.base.units import GIB, KIB, MIB, TIB
from tests.support.holdfast_program import ROOT, command, environment, run_json
from tests.support.huge_files import huge_file_folder

pytestmark = pytest.mark.integration

_DISK_BYTES = 62 * TIB
_DATA_BYTES = GIB
_PIECE_BYTES = MIB
_LIMIT_BYTES = 400 * MIB


@pytest.fixture
def disk() -> Iterator[Path]:
    """Pieces of 1 MiB all over the disk, and the last bytes of it."""
    with tempfile.TemporaryDirectory(dir=huge_file_folder(_DISK_BYTES)) as folder:
        path = Path(folder) / "huge.raw"
        source = random.Random(62)
        content = source.randbytes(_PIECE_BYTES)
        with path.open("wb") as file:
            file.truncate(_DISK_BYTES)
            for number in range(_DATA_BYTES // _PIECE_BYTES - 1):
                offset = source.randrange(_DISK_BYTES // _PIECE_BYTES) * _PIECE_BYTES
                os.pwrite(file.fileno(), number.to_bytes(8, "big") + content[8:], offset)
            os.pwrite(file.fileno(), b"the end", _DISK_BYTES - 7)
        yield path


def peak_rss_bytes(home: Path, *words: str | Path) -> int:
    """Run a command of holdfast; return the largest memory it ever had.

    From VmHWM, which belongs to the program: ru_maxrss of a child starts at what pytest had when
    it made the child.
    """
    peak = 0
    with subprocess.Popen(command(*words, "--quiet"), env=environment(home), cwd=ROOT) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
            if found:
                peak = int(found[1]) * KIB
            time.sleep(0.005)
    assert process.returncode == 0
    assert peak > MIB
    return peak


def test_a_huge_sparse_disk_is_backed_up_in_little_memory(tmp_path: Path, disk: Path) -> None:
    """First backup and rescan both peak below 400 MiB, and the last byte is there."""
    run_json(tmp_path, "repo", "init")
    for _ in range(2):
        used = peak_rss_bytes(tmp_path, "backup", "image", "--vm", "huge", disk)
        print(f"peak {used // MIB} MiB")
        assert used < _LIMIT_BYTES
    shown = run_json(tmp_path, "point", "show", "latest:huge")
    assert shown["disks"][0]["size_bytes"] == _DISK_BYTES
    assert shown["disks"][0]["changed_bytes"] == 0
