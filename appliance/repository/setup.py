"""How a repository comes to be, and what must be read before any key is: `config.json`, key slots.

Data path: `repository.py` opens with `read_config` and `unlock_data_key`; nothing else reads these
blobs. The format of both is in `docs/format.md`.
"""

from __future__ import annotations

import json
import secrets
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
from appliance.base.errors import ApplianceError, StorageError
from appliance.base.secret import Secret
from appliance.repository.blob_store.contract import BlobNotFoundError, BlobStore
from appliance.repository.blob_store.local_folder import LocalFolderStore
from appliance.repository.blob_store.names import UNFINISHED_FOLDER
from appliance.repository.chunker import CHUNK_RULES, NEW_REPOSITORY_RULE
from appliance.repository.crypto import new_data_key
from appliance.repository.errors import (
    CorruptError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    RepositoryVersionError,
)
from appliance.repository.format import (
    CONFIG_LIMIT_BYTES,
    CONFIG_NAME,
    KEY_SLOTS,
    REPOSITORY_VERSION,
)
from appliance.repository.key_slots import (
    SLOT_LIMIT_BYTES,
    KeySlotCorruptError,
    NotEncryptedError,
    SlotKind,
    WrongPassphraseError,
    WrongRecoveryKeyError,
    clear_slot,
    passphrase_slot,
    recovery_slot,
    unlock,
)
from appliance.repository.locks import LOCKS, SessionLocks

_SLOTS_MOST = 16


class RepositoryConfig(BaseModel):
    """`config.json`: what must be known before any key is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    repository_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    created_at: AwareDatetime
    encrypted: bool
    chunking: int = Field(default=1, ge=1)
    checksum: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.checksum and self.checksum != self.expected_checksum():
            raise ValueError("checksum does not match")
        return self

    def expected_checksum(self) -> str:
        """BLAKE3 (32 hex digits) over the other fields, so that no flipped bit goes unnoticed.

        Without chunk rule 1: repositories of before there was a second one do not name it.
        """
        text = self.model_dump_json(exclude={"checksum"}, exclude_defaults=True)
        return blake3(text.encode()).hexdigest()[:32]


def create_repository(
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
        chunking=NEW_REPOSITORY_RULE,
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


def change_passphrase(
    path: Path,
    new: Secret,
    *,
    passphrase: Secret | None = None,
    recovery_key: Secret | None = None,
) -> None:
    """Wrap the data key anew; no data is rewritten, the recovery key stays as it is.

    Crash guarantee: the new slot is durable before the old one goes; in between both open.

    Raises: as `Repository.open`; NotEncryptedError for a repository without encryption.
    """
    store = LocalFolderStore(path)
    config = read_config(store, path)
    if not config.encrypted:
        raise NotEncryptedError(f"{path} is not encrypted")
    old = [blob.name for blob in store.list(KEY_SLOTS) if SlotKind.PASSPHRASE in blob.name]
    data_key = unlock_data_key(store, config, passphrase, recovery_key)
    slot = passphrase_slot(data_key, new, repository_id=config.repository_id)
    store.put(_slot_name(slot.kind), slot.to_bytes())
    for name in old:
        store.delete(name)


def unlock_data_key(
    store: BlobStore,
    config: RepositoryConfig,
    passphrase: Secret | None,
    recovery_key: Secret | None,
) -> Secret:
    """Raises: as `key_slots.unlock`; CorruptError: configuration and key slots disagree.

    StorageError, BlobNotFoundError: a slot cannot be read, and no other opened.
    """
    slots: list[bytes] = []
    unreadable: ApplianceError | None = None
    for blob in list(store.list(KEY_SLOTS))[:_SLOTS_MOST]:
        try:
            slots.append(store.get(blob.name, limit_bytes=SLOT_LIMIT_BYTES))
        except (StorageError, BlobNotFoundError) as error:  # one good slot is enough
            unreadable = error
    try:
        data_key = unlock(
            slots,
            repository_id=config.repository_id,
            passphrase=passphrase,
            recovery_key=recovery_key,
        )
    except (WrongPassphraseError, WrongRecoveryKeyError, KeySlotCorruptError):
        if unreadable is not None:
            raise unreadable from None
        raise
    if config.encrypted is (passphrase is None and recovery_key is None):
        # Else whoever can write the folder could turn encryption off for later backups.
        raise CorruptError(f"{CONFIG_NAME} and the key slots disagree on encryption")
    return data_key


def _is_unfinished(path: Path) -> bool:
    """Whether there is nothing, or only what a creation leaves that was cut off."""
    return {entry.name for entry in path.iterdir()} <= {KEY_SLOTS, UNFINISHED_FOLDER, LOCKS}


def _slot_name(kind: str) -> str:
    return f"{KEY_SLOTS}/{kind}-{secrets.token_hex(8)}.json"


def read_config(store: BlobStore, path: Path) -> RepositoryConfig:
    """Raises RepositoryNotFoundError, RepositoryVersionError, CorruptError, StorageError."""
    try:
        raw = store.get(CONFIG_NAME, limit_bytes=CONFIG_LIMIT_BYTES)
    except BlobNotFoundError as error:
        raise RepositoryNotFoundError(f"no repository at {path}") from error
    try:
        version = json.loads(raw).get("version")
        if isinstance(version, int) and version > REPOSITORY_VERSION:
            raise RepositoryVersionError(f"{path} is of format version {version}")
        config = RepositoryConfig.model_validate_json(raw)
    except (ValueError, AttributeError, ValidationError) as error:
        raise CorruptError(f"{path / CONFIG_NAME}: {error}") from error
    if config.chunking not in CHUNK_RULES:
        raise RepositoryVersionError(f"{path} has chunks cut by rule {config.chunking}")
    return config
