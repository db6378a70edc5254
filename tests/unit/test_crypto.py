"""Keys, sealed records, key slots and recovery keys."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.repository.crypto import (
    SEAL_BYTES,
    Authenticator,
    RecordAuthenticationError,
    RecordCipher,
    RepositoryKeys,
    new_data_key,
)
from appliance.repository.key_slots import (
    KeySlot,
    KeySlotCorruptError,
    NotEncryptedError,
    PassphraseRequiredError,
    ScryptCost,
    WrongPassphraseError,
    WrongRecoveryKeyError,
    clear_slot,
    passphrase_slot,
    recovery_slot,
    unlock,
)
from appliance.repository.recovery_key import (
    RecoveryKeyTextError,
    format_recovery_key,
    new_recovery_key,
    parse_recovery_key,
)

DIGEST = bytes(range(32))
GOLDEN_KEYS = ["9d900be41e6b69d2", "60494521b85f09c6", "6c18847ef68a7375"]
GOLDEN_SEED = 15264143974859410720
CHEAP = ScryptCost(n=1 << 10)
REPOSITORY = "20261120T031500Z-0123456789ab"
PASSPHRASE = Secret.of_text("correct horse")
DATA_KEY = Secret(bytes(range(100, 132)))


def sealed_slot() -> bytes:
    return passphrase_slot(DATA_KEY, PASSPHRASE, repository_id=REPOSITORY, cost=CHEAP).to_bytes()


def open_slots(*slots: bytes, passphrase: Secret | None = PASSPHRASE) -> Secret:
    return unlock(slots, repository_id=REPOSITORY, passphrase=passphrase)


def test_a_secret_hides_in_every_text() -> None:
    """Neither repr, str, formatting, a container nor an error shows it; pickle and copy refuse."""
    secret = Secret.of_text("hunter2")
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r:>20}", str((secret,)),
                 repr([secret]), repr({"a": secret}), str(ValueError(secret))):  # fmt: skip
        assert "hunter2" not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.copy(secret)
    assert secret.reveal() == b"hunter2"
    assert secret == Secret(b"hunter2") != Secret(b"hunter3")
    assert not hasattr(secret, "__dict__")


def test_derived_keys_are_frozen_by_the_format() -> None:
    """Golden values: the same data key gives the same keys for ever (HKDF-SHA256, RFC 5869)."""
    keys = RepositoryKeys.derive(DATA_KEY)
    found = [keys.record_key, keys.digest_key, keys.authentication_key]
    assert [key.reveal().hex()[:16] for key in found] == GOLDEN_KEYS
    assert keys.chunker_seed == GOLDEN_SEED
    assert len({key.reveal() for key in [*found, DATA_KEY]}) == 4
    assert RepositoryKeys.derive(new_data_key()) != keys
    with pytest.raises(ValueError, match="31 bytes"):
        RepositoryKeys.derive(Secret(bytes(31)))


def test_hkdf_is_that_of_the_standard_library() -> None:
    """An independent computation (RFC 5869 by hmac) gives the same record key."""
    extracted = hmac.digest(bytes(32), DATA_KEY.reveal(), hashlib.sha256)
    expanded = hmac.digest(extracted, b"holdfast/1/record key\x01", hashlib.sha256)
    assert RepositoryKeys.derive(DATA_KEY).record_key == Secret(expanded)


@given(st.binary(max_size=300), st.integers(0, 255))
def test_a_sealed_record_opens_as_what_it_was(plaintext: bytes, kind: int) -> None:
    """28 bytes longer, never twice the same, and the plaintext back."""
    cipher = RecordCipher(DATA_KEY)
    sealed = cipher.seal(memoryview(plaintext), kind, DIGEST)
    assert len(sealed) == len(plaintext) + SEAL_BYTES
    assert sealed != cipher.seal(plaintext, kind, DIGEST)
    assert cipher.open(memoryview(sealed), kind, DIGEST) == plaintext


def test_every_changed_bit_of_a_sealed_record_is_found() -> None:
    """Nonce, ciphertext, tag, kind, digest and key are all covered; so is a cut."""
    cipher = RecordCipher(DATA_KEY)
    sealed = cipher.seal(b"some data", 1, DIGEST)
    damaged = [
        sealed[:byte] + bytes([sealed[byte] ^ 1 << bit]) + sealed[byte + 1 :]
        for byte in range(len(sealed))
        for bit in range(8)
    ]
    cut = [sealed[:length] for length in range(len(sealed))]
    for wrong in damaged + cut:
        with pytest.raises(RecordAuthenticationError, match=DIGEST.hex()):
            cipher.open(wrong, 1, DIGEST)
    with pytest.raises(RecordAuthenticationError):
        cipher.open(sealed, 2, DIGEST)
    with pytest.raises(RecordAuthenticationError):
        cipher.open(sealed, 1, bytes(32))
    with pytest.raises(RecordAuthenticationError):
        RecordCipher(new_data_key()).open(sealed, 1, DIGEST)


def test_a_tag_is_bound_to_key_purpose_and_data() -> None:
    """A manifest's tag is worth nothing for an index segment, nor for other bytes."""
    authenticator = Authenticator(DATA_KEY)
    tag = authenticator.tag("manifest", b"data")
    assert len(tag) == 32
    assert authenticator.verify("manifest", b"data", tag)
    assert not authenticator.verify("manifest", b"datb", tag)
    assert not authenticator.verify("manifes", b"tdata", tag)
    assert not authenticator.verify("segment", b"data", tag)
    assert not authenticator.verify("manifest", b"data", tag[:16])
    assert not Authenticator(new_data_key()).verify("manifest", b"data", tag)


def test_the_passphrase_opens_its_slot() -> None:
    """The data key comes back, and the document does not contain it."""
    document = sealed_slot()
    assert open_slots(document) == DATA_KEY
    assert DATA_KEY.reveal().hex() not in document.decode()
    assert sealed_slot() != document


def test_the_default_cost_opens() -> None:
    """2^17, 8, 1: what repositories are made with, and what OpenSSL's memory limit lets through."""
    slot = passphrase_slot(DATA_KEY, PASSPHRASE, repository_id=REPOSITORY)
    assert slot.scrypt == ScryptCost(n=1 << 17, r=8, p=1)
    assert open_slots(slot.to_bytes()) == DATA_KEY


def test_a_wrong_passphrase_is_not_taken_for_damage() -> None:
    """The slot is whole, so the operator is told to try another passphrase."""
    with pytest.raises(WrongPassphraseError) as caught:
        open_slots(sealed_slot(), passphrase=Secret.of_text("wrong horse"))
    assert caught.value.code == "repository.wrong-passphrase"


def test_every_damaged_byte_of_a_slot_is_taken_for_damage() -> None:
    """Whatever byte changes, with the right or a wrong passphrase: corrupt, never "wrong"."""
    document = sealed_slot()
    for at in range(len(document)):
        if document[at : at + 1].isspace():
            continue  # layout means nothing
        damaged = document[:at] + bytes([document[at] ^ 1]) + document[at + 1 :]
        for passphrase in (PASSPHRASE, Secret.of_text("wrong")):
            with pytest.raises(KeySlotCorruptError) as caught:
                open_slots(damaged, passphrase=passphrase)
            assert caught.value.code == "repository.key-slot-corrupt"


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.integers(1, 360).map(lambda cut: sealed_slot()[:-cut]))
def test_garbage_and_cut_slots_are_damage(raw: bytes) -> None:
    """No input makes the parser fail in another way."""
    with pytest.raises(KeySlotCorruptError):
        open_slots(raw)


def test_no_slot_and_a_huge_slot_are_damage() -> None:
    """A repository without keys cannot be opened; a slot has a size limit."""
    with pytest.raises(KeySlotCorruptError):
        open_slots()
    with pytest.raises(KeySlotCorruptError, match="bytes"):
        open_slots(sealed_slot() + b" " * 5000)


@pytest.mark.parametrize(
    "cost",
    [{"n": 1 << 30}, {"n": 1 << 22, "r": 64}, {"r": 1 << 20}, {"p": 1000}, {"n": 100_000}, {"n": 1},
     {"n": -2}, {"p": 0}, {"r": 8.0}, {"n": "131072"}, {"n": True}, {"extra": 1}],
)  # fmt: skip
def test_a_hostile_cost_is_refused_before_it_is_paid(cost: dict[str, object]) -> None:
    """A forged slot, its checksum set right, asks for no terabytes and no hours."""
    document = json.loads(sealed_slot())
    document["scrypt"] = {"n": 1 << 10, "r": 8, "p": 1} | cost
    with pytest.raises(KeySlotCorruptError):
        open_slots(json.dumps(document).encode())


def test_a_slot_of_another_repository_is_not_taken_for_a_wrong_passphrase() -> None:
    """Slots are bound to their repository, by checksum and by associated data."""
    document = sealed_slot()
    with pytest.raises(KeySlotCorruptError, match="another repository"):
        unlock([document], repository_id="other", passphrase=PASSPHRASE)
    slot = KeySlot.parse(document, REPOSITORY)
    forged = slot.model_copy(update={"checksum": slot.expected_checksum("other")}).to_bytes()
    with pytest.raises(WrongPassphraseError):
        unlock([forged], repository_id="other", passphrase=PASSPHRASE)


def test_the_passphrase_changes_without_the_data_key() -> None:
    """A new slot with the new passphrase; without the old slot the old passphrase is nothing."""
    data_key = open_slots(sealed_slot())
    new = Secret.of_text("battery staple")
    replaced = passphrase_slot(data_key, new, repository_id=REPOSITORY, cost=CHEAP).to_bytes()
    assert open_slots(replaced, passphrase=new) == DATA_KEY
    with pytest.raises(WrongPassphraseError):
        open_slots(replaced)


def test_the_recovery_key_opens_what_the_passphrase_slot_no_longer_can() -> None:
    """One good slot is enough, and each secret opens its own kind only."""
    recovery_key = new_recovery_key()
    recovery = recovery_slot(DATA_KEY, recovery_key, repository_id=REPOSITORY).to_bytes()
    damaged = sealed_slot().replace(b'"passphrase"', b'"passphrasf"')
    assert (
        unlock([damaged, recovery], repository_id=REPOSITORY, recovery_key=recovery_key) == DATA_KEY
    )
    assert open_slots(recovery, sealed_slot()) == DATA_KEY
    with pytest.raises(KeySlotCorruptError):
        open_slots(damaged, recovery)
    with pytest.raises(WrongPassphraseError):
        open_slots(recovery, sealed_slot(), passphrase=Secret.of_text("wrong"))
    with pytest.raises(WrongRecoveryKeyError):
        unlock([recovery], repository_id=REPOSITORY, recovery_key=new_recovery_key())


def test_an_encrypted_repository_asks_for_its_passphrase() -> None:
    """Forgetting the passphrase option is a usage error, not a wrong passphrase."""
    with pytest.raises(PassphraseRequiredError):
        open_slots(sealed_slot(), passphrase=None)
    with pytest.raises(UsageError, match="empty"):
        passphrase_slot(DATA_KEY, Secret(b""), repository_id=REPOSITORY)


def test_an_unencrypted_repository_opens_without_and_refuses_a_passphrase() -> None:
    """Else a slot slipped in by whoever writes to the store would go unnoticed."""
    slot = clear_slot(DATA_KEY, repository_id=REPOSITORY)
    assert open_slots(slot.to_bytes(), passphrase=None) == DATA_KEY
    assert DATA_KEY.reveal().hex() not in repr(slot) + str(slot)
    with pytest.raises(NotEncryptedError):
        open_slots(slot.to_bytes())
    with pytest.raises(KeySlotCorruptError, match="tampered"):
        open_slots(sealed_slot(), slot.to_bytes())


@given(st.binary(min_size=32, max_size=32))
def test_a_recovery_key_survives_being_copied_by_hand(raw: bytes) -> None:
    """Groups of four; spaces, dashes, case and look-alike digits do not matter."""
    text = format_recovery_key(Secret(raw))
    groups = text.split("-")
    assert len(groups) == 14
    assert all(len(group) == 4 for group in groups)
    assert parse_recovery_key(text) == Secret(raw)
    by_hand = "  " + text.lower().replace("-", " ").replace("o", "0").replace("i", "1") + "\n"
    assert parse_recovery_key(by_hand) == Secret(raw)


def test_a_mistyped_recovery_key_is_found_and_not_repeated() -> None:
    """Any wrong or missing digit and any swap of neighbours is told as such."""
    text = format_recovery_key(Secret(bytes(range(32)))).replace("-", "")
    wrong = [text[:-1], text + "A", "", text.replace("A", "!")]
    wrong += [text[:i] + ("B" if text[i] != "B" else "C") + text[i + 1 :] for i in range(56)]
    swaps = [text[:i] + text[i + 1] + text[i] + text[i + 2 :] for i in range(55)]
    for candidate in wrong + [swap for swap in swaps if swap != text]:
        with pytest.raises(RecoveryKeyTextError) as caught:
            parse_recovery_key(candidate)
        assert text[:8] not in str(caught.value)
