"""A repository: the parts of this package, opened together on one blob store and one index.

    with Repository.open(Path("/srv/backup"), passphrase=None) as repository:
        with repository.begin_run(run_id, context) as run:      # jobs.backup
            result = run.images.write(source, parent_root, changed)
            run.commit(manifest)
        reader = repository.open_image(point, 0)                # exports, restore, verify

Several may be open at once, in one process and in many; `locks.py` holds the table of what may run
beside what. Closing a repository closes the readers' index under them, so close those first.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from appliance.base.clock import Clock, SystemClock
from appliance.base.ids import RunId, new_run_id
from appliance.base.run_context import RunContext
from appliance.base.secret import Secret
from appliance.repository.blob_store.contract import BlobNotFoundError, BlobStore
from appliance.repository.blob_store.local_folder import LocalFolderStore
from appliance.repository.chunk_cache import DEFAULT_CACHE_BYTES, ChunkCache
from appliance.repository.chunk_store import ChunkStore
from appliance.repository.chunker import CHUNK_RULES, Chunker
from appliance.repository.crypto import (
    Authenticator,
    RecordCipher,
    RepositoryKeys,
)
from appliance.repository.digest import Digester
from appliance.repository.document import DocumentCodec
from appliance.repository.errors import (
    CorruptError,
    PointNotFoundError,
    RepositoryNotFoundError,
)
from appliance.repository.format import (
    INDEX_SEGMENTS,
    PACK_TARGET_BYTES,
)
from appliance.repository.image_reader import ImageReader
from appliance.repository.index import ChunkIndex
from appliance.repository.index_segment import read_segment, write_segment
from appliance.repository.locks import (
    LiveSession,
    SessionDetails,
    SessionKind,
    SessionLocks,
)
from appliance.repository.manifest import Manifest
from appliance.repository.pack import SealedPack
from appliance.repository.quarantine import Quarantine
from appliance.repository.record import DEFAULT_LEVEL, RecordCodec
from appliance.repository.recovery_points import RecoveryPoints
from appliance.repository.served_chunks import ServedChunks
from appliance.repository.setup import (
    RepositoryConfig,
    change_passphrase,
    create_repository,
    read_config,
    unlock_data_key,
)
from appliance.repository.write_run import WriteRun


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryOptions:
    """Tunables of an open repository; none of them is part of the format."""

    cache_bytes: int = DEFAULT_CACHE_BYTES
    compression_level: int = DEFAULT_LEVEL
    pack_target_bytes: int = PACK_TARGET_BYTES
    workers: int = 2


class Repository:
    def __init__(
        self,
        store: BlobStore,
        index: ChunkIndex,
        config: RepositoryConfig,
        keys: RepositoryKeys,
        options: RepositoryOptions,
        clock: Clock,
        locks: SessionLocks,
    ) -> None:
        """For `open`; it joins the parts and reads nothing."""
        cipher = RecordCipher(keys.record_key) if config.encrypted else None
        self.store = store
        self.index = index
        self.config = config
        self.options = options
        self.clock = clock
        self.id = bytes.fromhex(config.repository_id)
        self.authenticator = Authenticator(keys.authentication_key)
        self.documents = DocumentCodec(self.authenticator, cipher)
        self.digester = Digester(keys.digest_key.reveal())
        self.chunker = Chunker(keys.chunker_seed, CHUNK_RULES[config.chunking])
        self.codec = RecordCodec(self.digester, cipher, level=options.compression_level)
        self.chunks = ChunkStore(store, index, self.codec)
        self.locks = locks
        self.points = RecoveryPoints(store, self.documents, forgetting=locks.forgetting)
        self.quarantine = Quarantine(store, self.documents, index)
        self.cache = ChunkCache(options.cache_bytes)
        self.served = ServedChunks(self.chunks, self.codec, self.cache)

    # Making and opening

    create = staticmethod(create_repository)
    change_passphrase = staticmethod(change_passphrase)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        passphrase: Secret | None = None,
        recovery_key: Secret | None = None,
        options: RepositoryOptions | None = None,
        clock: Clock | None = None,
    ) -> Self:
        """Open it and take in what other appliances have added since.

        On a read-only file system nothing is taken in: what this one wrote can be restored.

        Raises:
            RepositoryNotFoundError, RepositoryVersionError, CorruptError, StorageError;
            PassphraseRequiredError, WrongPassphraseError, WrongRecoveryKeyError,
            KeySlotCorruptError, NotEncryptedError; IndexDamagedError.
        """
        if not path.is_dir():
            raise RepositoryNotFoundError(f"no repository at {path}")
        store = LocalFolderStore(path)
        config = read_config(store, path)
        data_key = unlock_data_key(store, config, passphrase, recovery_key)
        keys = RepositoryKeys.derive(data_key)
        index = ChunkIndex(path / "lmdb")
        repository = cls(
            store,
            index,
            config,
            keys,
            options or RepositoryOptions(),
            clock or SystemClock(),
            SessionLocks(path, clock=clock),
        )
        try:
            if not index.read_only:
                repository.take_in_segments()
        except BaseException:
            index.close()
            raise
        return repository

    def close(self) -> None:
        self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The index

    def take_in_segments(self) -> dict[str, CorruptError]:
        """Add index segments that this LMDB has not seen: another appliance, or a killed run,
        wrote them. Return those that are damaged; `check` repairs them.

        GC may remove a segment between listing and inserting, hence the look inside the
        transaction: GC knows the name until the blob is gone.
        """
        damaged: dict[str, CorruptError] = {}
        known = self.index.segments()
        for blob in self.store.list(INDEX_SEGMENTS):
            if blob.name in known:
                continue
            try:
                packs = self.read_segment(blob.name)
            except BlobNotFoundError:
                continue
            except CorruptError as error:
                damaged[blob.name] = error
                continue
            self.index.insert(
                blob.name,
                packs,
                without=self.quarantine.places(),
                unless=partial(self._is_gone, blob.name),
            )
        return damaged

    def _is_gone(self, name: str) -> bool:
        try:
            self.store.size_bytes(name)
        except BlobNotFoundError:
            return True
        return name in self.index.segments()

    def read_segment(self, name: str) -> list[SealedPack]:
        return read_segment(
            self.store, name, repository_id=self.id, authenticator=self.authenticator
        )

    def publish_segment(self, name: str, packs: Sequence[SealedPack]) -> None:
        """Commit an index segment, then take it into LMDB. The packs are committed already."""
        self.write_segment(name, packs)
        self.index.insert(name, packs)

    def write_segment(self, name: str, packs: Sequence[SealedPack]) -> None:
        """Commit an index segment, without taking it in."""
        write_segment(
            self.store, name, packs, repository_id=self.id, authenticator=self.authenticator
        )

    # Writing and reading

    def begin_run(
        self, run_id: RunId, context: RunContext, parent: Manifest | None = None
    ) -> WriteRun:
        """Start a run that writes; `parent` is pinned until it ends. Enter and leave it.

        Raises: LockedError, StorageFullError, StorageError.
        """
        return WriteRun(self, run_id, context, parent)

    def new_run_id(self) -> RunId:
        return new_run_id(self.clock.now())

    def is_affected(self, manifest: Manifest) -> bool:
        """Whether a check has found damaged chunks in this point that were not healed since."""
        return self.quarantine.affects(manifest)

    def open_image(self, point: str | Manifest, disk_number: int) -> ImageReader:
        """Open one disk of a recovery point for reading; `close` it.

        Until then garbage collection keeps what it reads, even if the point is forgotten.

        Raises: PointNotFoundError, CorruptError, StorageError.
        """
        manifest = self.points.get(point) if isinstance(point, str) else point
        disk = manifest.disk(disk_number)
        if disk is None:
            raise PointNotFoundError(f"{manifest.point_id} disk {disk_number}")
        with ExitStack() as stack:
            purpose = f"reads disk {disk_number} of {manifest.vm[:200]} {manifest.point_id}"
            stack.enter_context(self.reading((disk.root_hex,), purpose))
            if not self.points.exists(manifest.point_id):
                raise PointNotFoundError(manifest.point_id)
            return ImageReader(
                self.chunks,
                disk.root,
                disk.size_bytes,
                self.served,
                on_close=stack.pop_all().close,
            )

    def reading(
        self, roots_hex: tuple[str, ...], purpose: str
    ) -> AbstractContextManager[LiveSession]:
        """Pin the images of these roots. Look *then* whether the points are there."""
        details = SessionDetails(purpose=purpose, roots=roots_hex)
        return self.locks.register(SessionKind.READER, self.new_run_id(), details=details)
