"""Certificates: what was signed is what is read, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.catalog.errors import CatalogDamagedError, SigningKeyLostError
from appliance.jobs import certificate_store
from appliance.jobs.certificate import (
    CertificateChainError,
    CertificateError,
    CertificateKeyError,
    CertificateTamperedError,
    RotationBody,
    VerificationBody,
    read_certificate,
    seal,
)
from appliance.jobs.certificate_chain import Chain, verify_chain
from appliance.jobs.certificate_store import CertificateStore
from tests.support.certificates_issued import issue, proof


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


def check(paths: list[Path], key: bytes | None = None) -> Chain:
    return verify_chain(contents(paths), key)


def test_what_was_issued_is_what_is_read(tmp_path: Path) -> None:
    """A certificate says what the run proved, and whose key says so."""
    (path,) = issue(tmp_path)
    body = read_certificate("x", path.read_bytes()).body
    assert isinstance(body, VerificationBody)
    assert body.sequence == 1 and body.previous_sha256 is None
    assert body.guests == proof("vm-0").guests
    key = CertificateStore(tmp_path).signing_key().public_key
    assert check([path], key).keys == (key,)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_no_byte_of_a_certificate_can_be_changed(mask: int, tmp_path: Path) -> None:
    """Whatever a flipped bit turns a byte into (also upper case, white space), it is refused."""
    raw = issue(tmp_path)[0].read_bytes()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= mask
        with pytest.raises(CertificateTamperedError):
            read_certificate("x", bytes(changed))


def test_nothing_can_be_added_or_cut_off(tmp_path: Path) -> None:
    """Nor the same said in another way."""
    raw = issue(tmp_path)[0].read_bytes()
    document = json.loads(raw)
    document["body"]["note"] = "added"
    others = [b"", raw[:-1], raw + b"\n", b" " + raw, raw * 2, json.dumps(document).encode()]
    others += [json.dumps(json.loads(raw)).encode(), raw.replace(b"{", b'{"body":1,', 1)]
    others += [b"[" * 100_000, b"\xff" * 64, bytes((4 << 20) + 1)]
    for other in others:
        with pytest.raises(CertificateTamperedError):
            read_certificate("x", other)


def test_the_message_names_the_file_and_what_fails(tmp_path: Path) -> None:
    """Who checks a year of certificates must know which one is wrong."""
    paths = issue(tmp_path, 3)
    files = contents(paths)
    files[paths[1].name] = files[paths[1].name].replace(b'"passed"', b'"failed"', 1)
    with pytest.raises(CertificateTamperedError, match=rf"{paths[1].name}: the signature"):
        verify_chain(files, None)


def test_a_chain_verifies_in_any_order_and_from_any_place(tmp_path: Path) -> None:
    """Also a part of it, such as one month."""
    paths = issue(tmp_path, 5)
    assert [c.body.sequence for c in check(paths[::-1]).certificates] == [1, 2, 3, 4, 5]
    assert len(check(paths[2:4]).certificates) == 2


def test_a_certificate_that_is_missing_in_between_is_named(tmp_path: Path) -> None:
    """A bad night cannot be left out of a series."""
    paths = issue(tmp_path, 5)
    with pytest.raises(CertificateChainError, match=r"000005.*number 5, but 3 to 4 are missing"):
        check([paths[0], paths[1], paths[4]])


def test_a_certificate_of_another_chain_does_not_fit_in(tmp_path: Path) -> None:
    """Same appliance, same key, same number: the hash of the one before tells them apart."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    issue(first, 1)
    shutil.copytree(first, second)
    ours = issue(first, 1)
    theirs = CertificateStore(second).issue(proof("exchanged")).path
    follows = CertificateStore(first).issue(proof("third")).path
    files = {"1": (first / "certificates" / "certificate-000001.json").read_bytes()}
    files |= {"2": theirs.read_bytes(), "3": follows.read_bytes()}
    with pytest.raises(CertificateChainError, match="3: follows another certificate than 2"):
        verify_chain(files, None)
    assert check([*ours, follows])
    with pytest.raises(CertificateChainError, match="both number 2"):
        verify_chain({"a": ours[0].read_bytes(), "b": theirs.read_bytes()}, None)


def test_another_key_is_not_trusted(tmp_path: Path) -> None:
    """Who signs with a key of his own produces whole chains, but not under the key you know."""
    for name in ("ours", "forger"):
        (tmp_path / name).mkdir()
    forged = issue(tmp_path / "forger", 2)
    assert check(forged)
    ours = CertificateStore(tmp_path / "ours").signing_key().public_key
    with pytest.raises(CertificateKeyError):
        check(forged, ours)


def test_a_forger_who_hands_over_to_your_key_proves_nothing(tmp_path: Path) -> None:
    """Your public key is public: a chain that only names it as its next key is not yours."""
    for name in ("ours", "forger"):
        (tmp_path / name).mkdir()
    ours = CertificateStore(tmp_path / "ours").signing_key().public_key
    forged = issue(tmp_path / "forger", 2)
    forger = CertificateStore(tmp_path / "forger").signing_key()
    last = read_certificate("2", forged[-1].read_bytes())
    rotation = RotationBody(
        kind="key-rotation",
        version=1,
        sequence=3,
        previous_sha256=last.sha256,
        issued_at=last.body.issued_at,
        issuer=last.body.issuer,
        new_public_key=ours.hex(),
    )
    files = {**contents(forged), "3": seal(rotation, forger.sign)}
    assert len(verify_chain(files, None).certificates) == 3
    with pytest.raises(CertificateKeyError, match="only handed over to it"):
        verify_chain(files, ours)


def test_a_rotation_hands_over_and_either_key_proves_the_chain(tmp_path: Path) -> None:
    """The old key names the new one in the chain; no other key may go on."""
    store = CertificateStore(tmp_path)
    old = store.signing_key().public_key
    before = issue(tmp_path, 2)
    rotation = store.rotate().path
    new = store.signing_key().public_key
    behind = issue(tmp_path, 2)
    assert old != new
    everything = [*before, rotation, *behind]
    for key in (old, new, None):
        assert check(everything, key).keys == (old, new)
    assert check([*before, rotation], old)
    assert check([rotation, behind[0]], new)
    with pytest.raises(CertificateKeyError):
        check(before, new)
    with pytest.raises(CertificateKeyError):
        check(behind, old)


def test_a_key_that_was_not_handed_over_to_breaks_the_chain(tmp_path: Path) -> None:
    """Exchanging the key file shows at once."""
    before = issue(tmp_path, 1)
    (tmp_path / "signing.key").unlink()
    other = tmp_path / "other"
    other.mkdir()
    CertificateStore(other).signing_key()
    (other / "signing.key").rename(tmp_path / "signing.key")
    behind = issue(tmp_path, 1)
    with pytest.raises(CertificateChainError, match="another key"):
        check([*before, *behind])


def test_a_rotation_that_was_cut_off_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the new key took its place, or before the old one signed: the chain holds."""
    store = CertificateStore(tmp_path)
    before = issue(tmp_path, 1)
    store._key_file.prepare_next()  # and killed
    before += issue(tmp_path, 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(certificate_store.SigningKeyFile, "promote", killed)
        with pytest.raises(KeyboardInterrupt):
            store.rotate()
    behind = issue(tmp_path, 1)
    chain = check(store.paths())
    assert len(chain.certificates) == 4 and len(chain.keys) == 2
    assert store.paths() == [*before, store.path(3), *behind]


def test_a_lost_key_is_said_and_no_new_one_is_made(tmp_path: Path) -> None:
    """A chain that silently went on with another key would prove nothing."""
    issue(tmp_path, 1)
    (tmp_path / "signing.key").unlink()
    with pytest.raises(SigningKeyLostError):
        issue(tmp_path, 1)
    assert len(CertificateStore(tmp_path).paths()) == 1


@pytest.mark.parametrize("wrong", ["short", "readable"])
def test_a_key_file_that_is_none_or_open_to_others_is_refused(wrong: str, tmp_path: Path) -> None:
    """A key that others could read signs nothing."""
    store = CertificateStore(tmp_path)
    store.signing_key()
    path = tmp_path / "signing.key"
    assert path.stat().st_mode & 0o777 == 0o600
    if wrong == "short":
        os.truncate(path, 31)
    else:
        path.chmod(0o640)
    with pytest.raises(CatalogDamagedError):
        store.issue(proof())


def test_a_tampered_predecessor_stops_no_new_proof_and_shows_in_the_chain(tmp_path: Path) -> None:
    """The night's proof is issued; checking the chain names the one that was changed."""
    paths = issue(tmp_path, 2)
    paths[1].write_bytes(paths[1].read_bytes().replace(b"vm-1", b"vm-9"))
    paths += issue(tmp_path, 1)
    with pytest.raises(CertificateTamperedError, match=paths[1].name):
        check(paths)
    assert check(paths[2:])


def test_many_issue_at_once_and_the_chain_has_no_gap(tmp_path: Path) -> None:
    """Verifications may end at the same moment."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: issue(tmp_path), range(24)))
    assert len(check(CertificateStore(tmp_path).paths()).certificates) == 24


def test_nothing_given_is_refused() -> None:
    """An empty list of files is no proof."""
    with pytest.raises(CertificateError):
        verify_chain({}, None)
