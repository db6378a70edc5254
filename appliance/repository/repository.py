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

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from appliance.base.clock import Clock, SystemClock
from appliance.base.ids import RunId, new_run_id
from appliance.base.run_context import RunContext
from appliance.base.secret import Secret
from appliance.repository.blob_store.contract import BlobNotFoundError, BlobStore
from appliance.repository.blob_store.local_folder import LocalFolderStore
from appliance.repository.chunk_cache import DEFAULT_CACHE_BYTES, ChunkCache
from appliance.repository.chunk_store import ChunkStore, ChunkWriter
from appliance.repository.chunker import Chunker
from appliance.repository.crypto import (
    Authenticator,
    RecordCipher,
    RepositoryKeys,
    new_data_key,
)
from appliance.repository.digest import Digester
from appliance.repository.document import DocumentCodec
from appliance.repository.errors import (
    CorruptError,
    PointNotFoundError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    RepositoryVersionError,
)
from appliance.repository.format import (
    CONFIG_LIMIT_BYTES,
    CONFIG_NAME,
    INDEX_SEGMENTS,
    KEY_SLOTS,
    PACK_TARGET_BYTES,
    REPOSITORY_VERSION,
    index_segment_name,
)
from appliance.repository.image_reader import ImageReader
from appliance.repository.image_writer import ImageWriter
from appliance.repository.index import ChunkIndex
from appliance.repository.index_segment import read_segment, write_segment
from appliance.repository.key_slots import (
    SLOT_LIMIT_BYTES,
    NotEncryptedError,
    SlotKind,
    clear_slot,
    passphrase_slot,
    recovery_slot,
    unlock,
)
from appliance.repository.manifest import Manifest
from appliance.repository.pack import SealedPack
from appliance.repository.record import DEFAULT_LEVEL, RecordCodec
from appliance.repository.recovery_points import RecoveryPoints


class RepositoryConfig(BaseModel):
    """`config.json`: what must be known before any key is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    repository_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    created_at: AwareDatetime
    encrypted: bool


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
        self.chunker = Chunker(keys.chunker_seed)
        self.codec = RecordCodec(self.digester, cipher, level=options.compression_level)
        self.chunks = ChunkStore(store, index, self.codec)
        self.points = RecoveryPoints(store, self.documents)
        self.cache = ChunkCache(options.cache_bytes)

    # Making and opening

    @staticmethod
    def create(
        path: Path,
        *,
        passphrase: Secret | None = None,
        recovery_key: Secret | None = None,
        clock: Clock | None = None,
    ) -> RepositoryConfig:
        """Make an empty repository in a new or empty folder; with a passphrase, an encrypted one.

        Crash guarantee: the configuration comes last, so half a repository is none.

        Raises: RepositoryExistsError, StorageError, UsageError.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RepositoryExistsError(f"{path} is not an empty folder")
        path.mkdir(parents=True, exist_ok=True)
        store = LocalFolderStore(path)
        config = RepositoryConfig(
            version=REPOSITORY_VERSION,
            repository_id=secrets.token_hex(16),
            created_at=(clock or SystemClock()).now(),
            encrypted=passphrase is not None,
        )
        data_key = new_data_key()
        identity = config.repository_id
        if passphrase is None:
            slots = [clear_slot(data_key, repository_id=identity)]
        else:
            slots = [passphrase_slot(data_key, passphrase, repository_id=identity)]
            if recovery_key is not None:
                slots.append(recovery_slot(data_key, recovery_key, repository_id=identity))
        for slot in slots:
            store.put(_slot_name(slot.kind), slot.to_bytes())
        store.put(CONFIG_NAME, config.model_dump_json(indent=1).encode())
        return config

    @staticmethod
    def change_passphrase(
        path: Path,
        new: Secret,
        *,
        passphrase: Secret | None = None,
        recovery_key: Secret | None = None,
    ) -> None:
        """Wrap the data key anew; no data is rewritten, the recovery key stays as it is.

        Crash guarantee: the new slot is durable before the old one goes; in between both open.

        Raises: as `open`; NotEncryptedError for a repository without encryption.
        """
        store = LocalFolderStore(path)
        config = _read_config(store, path)
        if not config.encrypted:
            raise NotEncryptedError(f"{path} is not encrypted")
        old = [blob.name for blob in store.list(KEY_SLOTS) if SlotKind.PASSPHRASE in blob.name]
        data_key = unlock(
            _read_slots(store),
            repository_id=config.repository_id,
            passphrase=passphrase,
            recovery_key=recovery_key,
        )
        slot = passphrase_slot(data_key, new, repository_id=config.repository_id)
        store.put(_slot_name(slot.kind), slot.to_bytes())
        for name in old:
            store.delete(name)

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

        Raises:
            RepositoryNotFoundError, RepositoryVersionError, CorruptError, StorageError;
            PassphraseRequiredError, WrongPassphraseError, WrongRecoveryKeyError,
            KeySlotCorruptError, NotEncryptedError; IndexDamagedError.
        """
        if not path.is_dir():
            raise RepositoryNotFoundError(f"no repository at {path}")
        store = LocalFolderStore(path)
        config = _read_config(store, path)
        data_key = unlock(
            _read_slots(store),
            repository_id=config.repository_id,
            passphrase=passphrase,
            recovery_key=recovery_key,
        )
        if config.encrypted is (passphrase is None and recovery_key is None):
            # Else whoever can write the folder could turn encryption off for later backups.
            raise CorruptError(f"{path / CONFIG_NAME} and the key slots disagree on encryption")
        keys = RepositoryKeys.derive(data_key)
        index = ChunkIndex(path / "lmdb")
        repository = cls(
            store, index, config, keys, options or RepositoryOptions(), clock or SystemClock()
        )
        try:
            repository.take_in_segments()
        except BaseException:
            index.close()
            raise
        return repository

    def close(self) -> None:
        self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # The index

    def take_in_segments(self) -> None:
        """Add index segments that this LMDB has not seen; another appliance wrote them."""
        known = self.index.segments()
        for blob in self.store.list(INDEX_SEGMENTS):
            if blob.name not in known:
                self.index.insert(blob.name, self.read_segment(blob.name))

    def read_segment(self, name: str) -> list[SealedPack]:
        return read_segment(
            self.store, name, repository_id=self.id, authenticator=self.authenticator
        )

    def publish_segment(self, name: str, packs: Sequence[SealedPack]) -> None:
        """Commit an index segment, then take it into LMDB. The packs are committed already."""
        write_segment(
            self.store, name, packs, repository_id=self.id, authenticator=self.authenticator
        )
        self.index.insert(name, packs)

    # Writing and reading

    def begin_run(self, run_id: RunId, context: RunContext) -> WriteRun:
        return WriteRun(self, run_id, context)

    def new_run_id(self) -> RunId:
        return new_run_id(self.clock.now())

    def is_affected(self, manifest: Manifest) -> bool:
        """Whether a check has found damaged chunks in this point that were not healed since."""
        return False

    def open_image(self, point: str | Manifest, disk_number: int) -> ImageReader:
        """Open one disk of a recovery point for reading; `close` it.

        Raises: PointNotFoundError, CorruptError.
        """
        manifest = self.points.get(point) if isinstance(point, str) else point
        disk = manifest.disk(disk_number)
        if disk is None:
            raise PointNotFoundError(f"{manifest.point_id} disk {disk_number}")
        return ImageReader(self.chunks, disk.root, disk.size_bytes, self.cache)


class WriteRun:
    """One run that writes: a chunk writer, and at its end at most one commit.

    Left without a commit, by an error or by cancelling, it leaves unreferenced bytes at most.
    """

    def __init__(self, repository: Repository, run_id: RunId, context: RunContext) -> None:
        self.run_id = run_id
        self._repository = repository
        self._segments = 0
        self._chunks = ChunkWriter(
            repository.store,
            repository.index,
            repository.codec,
            repository_id=repository.id,
            publish=self._publish,
            progress=context.progress,
            pack_target_bytes=repository.options.pack_target_bytes,
        )
        self.images = ImageWriter(
            repository.chunks,
            self._chunks,
            repository.chunker,
            repository.digester,
            workers=repository.options.workers,
            context=context,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._chunks.abort()

    def flush(self) -> None:
        """Make everything written so far durable and indexed; nothing can be written after."""
        self._chunks.commit()

    def commit(self, manifest: Manifest) -> None:
        """Call after `flush`: the recovery point exists once this returns."""
        self._repository.points.commit(manifest)

    def _publish(self, packs: Sequence[SealedPack]) -> None:
        name = index_segment_name(self.run_id, self._segments)
        self._segments += 1
        self._repository.publish_segment(name, packs)


def _slot_name(kind: str) -> str:
    return f"{KEY_SLOTS}/{kind}-{secrets.token_hex(8)}.json"


def _read_config(store: BlobStore, path: Path) -> RepositoryConfig:
    try:
        raw = store.get(CONFIG_NAME, limit_bytes=CONFIG_LIMIT_BYTES)
    except BlobNotFoundError as error:
        raise RepositoryNotFoundError(f"no repository at {path}") from error
    try:
        version = json.loads(raw).get("version")
        if isinstance(version, int) and version > REPOSITORY_VERSION:
            raise RepositoryVersionError(f"{path} is of format version {version}")
        return RepositoryConfig.model_validate_json(raw)
    except (ValueError, AttributeError, ValidationError) as error:
        raise CorruptError(f"{path / CONFIG_NAME}: {error}") from error


def _read_slots(store: BlobStore) -> list[bytes]:
    names = [blob.name for blob in store.list(KEY_SLOTS)]
    return [store.get(name, limit_bytes=SLOT_LIMIT_BYTES) for name in names[:16]]
