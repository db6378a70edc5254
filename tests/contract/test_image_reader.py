"""A disk of a recovery point, against the BlockReader suite: with and without a useful cache."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from appliance.base.run_context import RunContext
from appliance.base.secret import Secret
from appliance.blocks.read_ahead import ReadAheadReader
from appliance.repository.chunk_cache import ChunkCache
from appliance.repository.image_reader import ImageReader
from appliance.repository.repository import Repository
from appliance.repository.served_chunks import ServedChunks
from tests.contract.block_reader import BlockReaderSuite, MakeReader, NearReaderSuite
from tests.support.memory_device import MemoryDevice


def stored(folder: Path, content: bytes, *, cache_bytes: int, secret: Secret | None) -> ImageReader:
    Repository.create(folder, passphrase=secret)
    repository = Repository.open(folder, passphrase=secret)
    with repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run:
        result = run.images.write(MemoryDevice(content), None, None)
        run.flush()
    return ImageReader(
        repository.chunks,
        result.root,
        len(content),
        ServedChunks(repository.chunks, repository.codec, ChunkCache(cache_bytes)),
        on_close=repository.close,
    )


class TestImageReader(BlockReaderSuite, NearReaderSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        numbers = itertools.count()
        return lambda content: stored(
            tmp_path / f"r{next(numbers)}", content, cache_bytes=64 << 20, secret=None
        )


class TestImageReaderWithoutRoomToCache(BlockReaderSuite, NearReaderSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        numbers = itertools.count()
        return lambda content: stored(
            tmp_path / f"r{next(numbers)}", content, cache_bytes=1, secret=None
        )


class TestImageReaderEncrypted(BlockReaderSuite, NearReaderSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        numbers = itertools.count()
        return lambda content: stored(
            tmp_path / f"r{next(numbers)}", content, cache_bytes=1 << 20, secret=Secret(b"pass")
        )


class TestReadAheadOfAnImage(BlockReaderSuite, NearReaderSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        numbers = itertools.count()
        return lambda content: ReadAheadReader(
            stored(tmp_path / f"r{next(numbers)}", content, cache_bytes=64 << 20, secret=None)
        )
