"""What a run leaves behind when the storage fails it, and how much one index segment lists."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import ApplianceError, StorageFullError
from appliance.base.run_context import RunContext
from appliance.repository import chunk_writer
from appliance.repository.blob_store.local_folder import LocalFolderStore
from appliance.repository.blob_store.local_writer import LocalBlobWriter
from appliance.repository.format import FOOTER_ENTRY, INDEX_SEGMENTS, RecordKind
from appliance.repository.repository import Repository, RepositoryOptions

OPTIONS = RepositoryOptions(pack_target_bytes=16 << 10, workers=1)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    Repository.create(tmp_path / "r")
    with Repository.open(tmp_path / "r", options=OPTIONS) as repository:
        yield repository


def insert(repository: Repository, chunks: Any, source: random.Random, count: int) -> None:
    for _ in range(count):
        raw = source.randbytes(4096)
        chunks.insert_many(RecordKind.CHUNK, [(repository.digester.chunk(raw), raw)])


def unfinished(repository_folder: Path) -> list[str]:
    """What is left of blobs in the making, once the clean-up of dead ones has been."""
    LocalFolderStore(repository_folder).discard_unfinished(older_than_s=0)
    return [path.name for path in (repository_folder / "tmp").iterdir()]


@pytest.mark.parametrize("kept", [False, True], ids=["dropped", "kept for the next run"])
def test_a_run_whose_pack_cannot_be_sealed_leaves_nothing_unfinished(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """No pack stays open: its space would come back only with the end of the process."""

    def full(self: LocalBlobWriter) -> None:
        self.abort()
        raise StorageFullError("no space left")

    monkeypatch.setattr(LocalBlobWriter, "commit", full)
    source = random.Random(1)
    with (
        repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run,
        pytest.raises(StorageFullError),
    ):
        try:
            insert(repository, run.chunks, source, 100)
            run.flush()
        except ApplianceError:
            if kept:
                with pytest.raises(ApplianceError):
                    run.make_durable()
            raise
    assert unfinished(tmp_path / "r") == []


def test_a_pack_that_cannot_be_begun_leaves_nothing_open(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file was made before the first byte was refused; it does not stay."""

    def refused(self: LocalBlobWriter, buffers: Any) -> None:
        raise StorageFullError("no space left")

    monkeypatch.setattr(LocalBlobWriter, "write", refused)
    with (
        repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run,
        pytest.raises(StorageFullError),
    ):
        insert(repository, run.chunks, random.Random(1), 1)
    assert unfinished(tmp_path / "r") == []


def test_an_index_segment_lists_a_bounded_number_of_records(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the records that a guest makes: a segment over its limit could not be read."""
    monkeypatch.setattr(chunk_writer, "_ENTRIES_PER_SEGMENT", 20, raising=False)
    with repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run:
        insert(repository, run.chunks, random.Random(1), 100)
        run.flush()
    segments = [repository.read_segment(b.name) for b in repository.store.list(INDEX_SEGMENTS)]
    counts = [[len(p.entries) // FOOTER_ENTRY.size for p in packs] for packs in segments]
    assert sum(map(sum, counts)) == 100
    assert all(sum(count[:-1]) < 20 for count in counts)


def test_what_could_not_be_sealed_is_not_called_durable(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make_durable` itself raises what sealing raised, not some later call."""

    def full(self: LocalBlobWriter) -> None:
        self.abort()
        raise StorageFullError("no space left")

    monkeypatch.setattr(LocalBlobWriter, "commit", full)
    with repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run:
        insert(repository, run.chunks, random.Random(1), 1)
        with pytest.raises(StorageFullError):
            run.make_durable()
