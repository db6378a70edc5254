"""Key slots: how the data key of a repository is kept, in clear or wrapped.

A repository has a few slots, each a small JSON document, and any one of them gives the data key:

- `clear`: an unencrypted repository; the data key itself, then the only slot.
- `passphrase`: wrapped with AES-256-GCM under a key that scrypt (RFC 7914) makes of it.
- `recovery`: wrapped under a key that HKDF-SHA256 makes of a random recovery key.

The associated data of a wrap are repository id and slot kind. Beside, a slot carries a checksum
over its other fields and the repository id, so that a damaged slot, or one of another repository,
is told from a wrong passphrase. The checksum is no protection against people: forging one makes a
wrong passphrase of the slot, nothing else.

To change the passphrase, wrap the data key again and replace the slot; no data is rewritten.
An opener that brings a passphrase never accepts a clear slot: else whoever can write to the store
could slip in a key of his own and read what is backed up from then on.

scrypt's cost is stored, and bounded before it is paid. The default takes 128 MiB and 0.3 s
(measured, one core).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal, Self

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.secret import Secret
from appliance.repository.crypto import KEY_BYTES, NONCE_BYTES, TAG_BYTES, derive_key

SLOT_LIMIT_BYTES = 4096
_SALT_BYTES = 32
_CHECKSUM_BYTES = 16
_SCRYPT_MEMORY_LIMIT_BYTES = 1 << 30


class WrongPassphraseError(ApplianceError):
    """The passphrase does not open this repository; nothing is damaged. Try another one."""

    code = "repository.wrong-passphrase"


class WrongRecoveryKeyError(ApplianceError):
    """The recovery key is well formed, but not of this repository; nothing is damaged."""

    code = "repository.wrong-recovery-key"


class KeySlotCorruptError(ApplianceError):
    """A key slot is damaged. Another slot (the recovery key) opens the repository if there is one;
    else put back the repository's key files from a copy."""

    code = "repository.key-slot-corrupt"


class PassphraseRequiredError(UsageError):
    """The repository is encrypted: give its passphrase or its recovery key."""

    code = "repository.passphrase-required"


class NotEncryptedError(UsageError):
    """A passphrase was given, but the repository is not encrypted. If it should be, do not use it:
    somebody may have replaced its keys. Else run again without a passphrase."""

    code = "repository.not-encrypted"


class SlotKind(StrEnum):
    CLEAR = "clear"
    PASSPHRASE = "passphrase"
    RECOVERY = "recovery"


class ScryptCost(BaseModel):
    """n, r and p of RFC 7914; memory is 128 * n * r bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    n: int = Field(default=1 << 17, ge=1 << 10, le=1 << 22)
    r: int = Field(default=8, ge=1, le=64)
    p: int = Field(default=1, ge=1, le=16)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n & (self.n - 1):
            raise ValueError("n is not a power of two")
        if 128 * self.n * self.r > _SCRYPT_MEMORY_LIMIT_BYTES:
            raise ValueError("scrypt would need more than 1 GiB")
        return self

    def derive(self, passphrase: Secret, salt: bytes) -> Secret:
        limit = 2 * 128 * self.n * self.r + (1 << 20)
        key = hashlib.scrypt(
            passphrase.reveal(), salt=salt, n=self.n, r=self.r, p=self.p, maxmem=limit, dklen=32
        )
        return Secret(key)


def _hex_bytes(count: int) -> object:
    return Field(pattern=f"^[0-9a-f]{{{2 * count}}}$")


class KeySlot(BaseModel):
    """A checked slot document; byte fields are lower-case hex."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    version: Literal[1] = 1
    kind: SlotKind
    scrypt: ScryptCost | None = None
    salt: Annotated[str, _hex_bytes(_SALT_BYTES)]
    nonce: Annotated[str, _hex_bytes(NONCE_BYTES)]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]+$", max_length=2 * (KEY_BYTES + TAG_BYTES))]
    """The data key in clear, or wrapped and followed by its tag."""
    checksum: Annotated[str, _hex_bytes(_CHECKSUM_BYTES)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        key_bytes = KEY_BYTES if self.kind is SlotKind.CLEAR else KEY_BYTES + TAG_BYTES
        if len(self.key) != 2 * key_bytes:
            raise ValueError("the key has a wrong length")
        if (self.scrypt is not None) != (self.kind is SlotKind.PASSPHRASE):
            raise ValueError("scrypt belongs to passphrase slots, and only to them")
        return self

    def __repr__(self) -> str:
        return f"KeySlot({self.kind})"  # a clear slot holds the key

    __str__ = __repr__

    def to_bytes(self) -> bytes:
        return self.model_dump_json(exclude_none=True, indent=1).encode()

    @classmethod
    def parse(cls, raw: bytes, repository_id: str) -> KeySlot:
        """Raises KeySlotCorruptError: not a slot, a damaged one, or one of another repository."""
        if len(raw) > SLOT_LIMIT_BYTES:
            raise KeySlotCorruptError(f"a key slot of {len(raw)} bytes")
        try:
            slot = cls.model_validate_json(raw)
        except ValidationError as error:
            reason = "; ".join(problem["msg"] for problem in error.errors(include_input=False))
            raise KeySlotCorruptError(f"a key slot is damaged: {reason}") from None
        if slot.checksum != slot.expected_checksum(repository_id):
            raise KeySlotCorruptError(
                f"the {slot.kind} key slot is damaged, or of another repository: wrong checksum"
            )
        return slot

    def expected_checksum(self, repository_id: str) -> str:
        covered = self.model_dump_json(exclude={"checksum"}, exclude_none=True)
        return blake3(f"{repository_id}\n{covered}".encode()).hexdigest(_CHECKSUM_BYTES)


def clear_slot(data_key: Secret, *, repository_id: str) -> KeySlot:
    """Keep the data key readable by anybody who can read the repository."""
    return _finished(SlotKind.CLEAR, None, b"", b"", data_key.reveal(), repository_id)


def passphrase_slot(
    data_key: Secret, passphrase: Secret, *, repository_id: str, cost: ScryptCost | None = None
) -> KeySlot:
    """Raises UsageError if the passphrase is empty."""
    if not passphrase.reveal():
        raise UsageError("an empty passphrase protects nothing")
    cost = cost or ScryptCost()
    salt = secrets.token_bytes(_SALT_BYTES)
    wrapping_key = cost.derive(passphrase, salt)
    return _wrap(data_key, wrapping_key, SlotKind.PASSPHRASE, cost, salt, repository_id)


def recovery_slot(data_key: Secret, recovery_key: Secret, *, repository_id: str) -> KeySlot:
    """The recovery key has 256 random bits, so no slow function is needed."""
    salt = secrets.token_bytes(_SALT_BYTES)
    wrapping_key = derive_key(recovery_key, "recovery slot", salt=salt)
    return _wrap(data_key, wrapping_key, SlotKind.RECOVERY, None, salt, repository_id)


def unlock(
    slots: Iterable[bytes],
    *,
    repository_id: str,
    passphrase: Secret | None = None,
    recovery_key: Secret | None = None,
) -> Secret:
    """Return the data key from the slot documents of a repository; one good slot is enough.

    Raises:
        PassphraseRequiredError: it is encrypted and neither secret was given.
        WrongPassphraseError, WrongRecoveryKeyError: the slots are whole and do not accept it.
        KeySlotCorruptError: none opened and at least one is damaged.
        NotEncryptedError: it is not encrypted and a secret was given.
    """
    found, damage = _parse_all(slots, repository_id)
    kinds = {slot.kind for slot in found}
    if SlotKind.CLEAR in kinds and len(kinds) > 1:
        raise KeySlotCorruptError(
            "a clear key slot beside wrapped ones: the keys were tampered with"
        )
    given = passphrase is not None or recovery_key is not None
    if SlotKind.CLEAR in kinds:
        if given:
            raise NotEncryptedError("the repository is not encrypted, and a passphrase was given")
        return Secret(bytes.fromhex(found[0].key))
    if found and not given:
        raise PassphraseRequiredError("the repository is encrypted")
    for slot in found:
        data_key = _try_open(slot, repository_id, passphrase, recovery_key)
        if data_key is not None:
            return data_key
    if damage:
        raise damage[0]
    if not found:
        raise KeySlotCorruptError("the repository has no key slot")
    if passphrase is None:
        raise WrongRecoveryKeyError("the recovery key does not open this repository")
    raise WrongPassphraseError("the passphrase does not open this repository")


def _parse_all(
    slots: Iterable[bytes], repository_id: str
) -> tuple[list[KeySlot], list[KeySlotCorruptError]]:
    found, damage = [], []
    for raw in slots:
        try:
            found.append(KeySlot.parse(raw, repository_id))
        except KeySlotCorruptError as error:
            damage.append(error)
    return found, damage


def _try_open(
    slot: KeySlot, repository_id: str, passphrase: Secret | None, recovery_key: Secret | None
) -> Secret | None:
    salt = bytes.fromhex(slot.salt)
    if slot.kind is SlotKind.PASSPHRASE and passphrase is not None and slot.scrypt is not None:
        wrapping_key = slot.scrypt.derive(passphrase, salt)
    elif slot.kind is SlotKind.RECOVERY and recovery_key is not None:
        wrapping_key = derive_key(recovery_key, "recovery slot", salt=salt)
    else:
        return None
    cipher = AESGCM(wrapping_key.reveal())
    try:
        data_key = cipher.decrypt(
            bytes.fromhex(slot.nonce),
            bytes.fromhex(slot.key),
            _associated(repository_id, slot.kind),
        )
    except InvalidTag:
        return None
    return Secret(data_key)


def _wrap(
    data_key: Secret,
    wrapping_key: Secret,
    kind: SlotKind,
    cost: ScryptCost | None,
    salt: bytes,
    repository_id: str,
) -> KeySlot:
    nonce = secrets.token_bytes(NONCE_BYTES)
    associated = _associated(repository_id, kind)
    wrapped = AESGCM(wrapping_key.reveal()).encrypt(nonce, data_key.reveal(), associated)
    return _finished(kind, cost, salt, nonce, wrapped, repository_id)


def _finished(
    kind: SlotKind,
    cost: ScryptCost | None,
    salt: bytes,
    nonce: bytes,
    key: bytes,
    repository_id: str,
) -> KeySlot:
    slot = KeySlot(
        kind=kind,
        scrypt=cost,
        salt=salt.hex().zfill(2 * _SALT_BYTES),
        nonce=nonce.hex().zfill(2 * NONCE_BYTES),
        key=key.hex(),
        checksum="0" * 2 * _CHECKSUM_BYTES,
    )
    return slot.model_copy(update={"checksum": slot.expected_checksum(repository_id)})


def _associated(repository_id: str, kind: SlotKind) -> bytes:
    return f"holdfast key slot\n{repository_id}\n{kind}".encode()
