"""A key slot whose file cannot be read: another one opens the repository all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.base.errors import StorageError
from appliance.base.secret import Secret
from appliance.repository.format import KEY_SLOTS
from appliance.repository.key_slots import SLOT_LIMIT_BYTES, PassphraseRequiredError
from appliance.repository.recovery_key import new_recovery_key
from appliance.repository.repository import Repository

PASSPHRASE = Secret(b"correct horse battery staple")


def test_the_recovery_key_opens_where_the_passphrase_slot_cannot_be_read(tmp_path: Path) -> None:
    """Nobody is locked out by one file; who has only the passphrase hears of the storage."""
    path, recovery_key = tmp_path / "r", new_recovery_key()
    Repository.create(path, passphrase=PASSPHRASE, recovery_key=recovery_key)
    (slot,) = (path / KEY_SLOTS).glob("passphrase-*")
    slot.write_bytes(bytes(SLOT_LIMIT_BYTES + 1))
    with Repository.open(path, recovery_key=recovery_key) as repository:
        assert repository.points.list() == []
    with pytest.raises(StorageError, match=slot.name):
        Repository.open(path, passphrase=PASSPHRASE)
    with pytest.raises(PassphraseRequiredError):
        Repository.open(path)
