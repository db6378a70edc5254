"""One helper that says whether a repository is sound; tests call it after each mutation."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.base.secret import Secret
from appliance.repository.repository import Repository
from appliance.repository.verify import CheckReport, check
from tests.support.memory_reader import MemoryReader


def check_repository(repository: Repository, *, read_data: bool = True) -> CheckReport:
    """Fail, with the whole report, unless every byte is as it was written."""
    report = check(repository, read_data=read_data)
    assert report.clean, report.as_json()
    return report


def check_path(path: Path, passphrase: Secret | None = None) -> None:
    with Repository.open(path, passphrase=passphrase) as repository:
        check_repository(repository)


def restored(repository: Repository, point_id: str, disk: int = 0) -> bytes:
    reader = repository.open_image(point_id, disk)
    try:
        return reader.read_at(0, reader.size_bytes)
    finally:
        reader.close()


def packed_bytes(path: Path) -> int:
    """Bytes of all packs and unfinished blobs, as the file system sees them."""
    total = 0
    for folder in ("packs", "tmp"):
        for parent, _, files in os.walk(path / folder):
            total += sum((Path(parent) / name).stat().st_size for name in files)
    return total


def memory_disk(data: bytes | bytearray) -> MemoryReader:
    return MemoryReader(bytes(data))
