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
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from blake3 import blake3
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from appliance.base.atomic import make_folders
from appliance.base.clock import Clock, SystemClock
from appliance.base.ids import RunId, new_run_id
from appliance.base.run_context import RunContext
from appliance.base.secret import Secret
from appliance.repository.blob_store.contract import BlobNotFoundError, BlobStore
from appliance.repository.blob_store.local_folder import LocalFolderStore
from appliance.repository.blob_store.names import UNFINISHED_FOLDER
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
from appliance.repository.locks import (
    LOCKS,
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


class RepositoryConfig(BaseModel):
    """`config.json`: what must be known before any key is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    repository_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    created_at: AwareDatetime
    encrypted: bool
    checksum: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.checksum and self.checksum != self.expected_checksum():
            raise ValueError("checksum does not match")
        return self

    def expected_checksum(self) -> str:
        """BLAKE3 (32 hex digits) over the other fields, so that no flipped bit goes unnoticed."""
        text = self.model_dump_json(exclude={"checksum"})
        return blake3(text.encode()).hexdigest()[:32]


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
        self.chunker = Chunker(keys.chunker_seed)
        self.codec = RecordCodec(self.digester, cipher, level=options.compression_level)
        self.chunks = ChunkStore(store, index, self.codec)
        self.locks = locks
        self.points = RecoveryPoints(store, self.documents, forgetting=locks.forgetting)
        self.quarantine = Quarantine(store, self.documents, index)
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
        if path.exists() and not (path.is_dir() and _is_unfinished(path)):
            raise RepositoryExistsError(f"{path} is not an empty folder")
        make_folders(path)
        store = LocalFolderStore(path)
        for blob in list(store.list(KEY_SLOTS)):  # of a creation that was cut off
            store.delete(blob.name)
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
        SessionLocks(path).prepare()
        config = config.model_copy(update={"checksum": config.expected_checksum()})
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
            store,
            index,
            config,
            keys,
            options or RepositoryOptions(),
            clock or SystemClock(),
            SessionLocks(path, clock=clock),
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
                self.cache,
                on_close=stack.pop_all().close,
            )

    def reading(
        self, roots_hex: tuple[str, ...], purpose: str
    ) -> AbstractContextManager[LiveSession]:
        """Pin the images of these roots. Look *then* whether the points are there."""
        details = SessionDetails(purpose=purpose, roots=roots_hex)
        return self.locks.register(SessionKind.READER, self.new_run_id(), details=details)


class WriteRun:
    """One run that writes: a chunk writer, and at its end at most one commit.

    Left without a commit, by an error or by cancelling, it leaves unreferenced bytes at most.
    """

    def __init__(
        self,
        repository: Repository,
        run_id: RunId,
        context: RunContext,
        parent: Manifest | None = None,
    ) -> None:
        """Raises: LockedError, StorageFullError, StorageError."""
        self.run_id = run_id
        self.parent = parent
        """The parent to build upon; None also when it was forgotten before it was pinned."""
        self._repository = repository
        self._segments = 0
        self._session = ExitStack()
        self._session.enter_context(
            repository.locks.register(
                SessionKind.BACKUP,
                run_id,
                details=SessionDetails(
                    purpose=f"backup of {parent.vm[:200]}" if parent else "",
                    roots=tuple(disk.root_hex for disk in parent.disks) if parent else (),
                ),
                generation=repository.index.generation,
            )
        )
        repository.index.check_current()
        if parent is not None and not repository.points.exists(parent.point_id):
            self.parent = None
        self.chunks = ChunkWriter(
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
            self.chunks,
            repository.chunker,
            repository.digester,
            workers=repository.options.workers,
            context=context,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._session:  # ends last: the commit is visible before the session goes
            self.chunks.abort()

    def flush(self) -> None:
        """Make everything written so far durable and indexed; nothing can be written after."""
        self.chunks.commit()

    def commit(self, manifest: Manifest) -> None:
        """Call after `flush`: the recovery point exists once this returns."""
        self._repository.points.commit(manifest)

    def _publish(self, packs: Sequence[SealedPack]) -> None:
        name = index_segment_name(self.run_id, self._segments)
        self._segments += 1
        self._repository.publish_segment(name, packs)


def _is_unfinished(path: Path) -> bool:
    """Whether there is nothing, or only what a creation leaves that was cut off."""
    return {entry.name for entry in path.iterdir()} <= {KEY_SLOTS, UNFINISHED_FOLDER, LOCKS}


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
