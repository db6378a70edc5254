"""The configuration of an appliance as one encrypted file, for a new one that takes its place.

In it: hosts with their sealed passwords and the key that opens them, jobs, accounts, runs and the
audit log (all of the catalog), the certificates and the key that signs them, the appliance's id and
its TLS key. Not in it: the repository and what running recovery sessions wrote.

A bundle is magic (8 bytes), salt (32), nonce (12), then AES-256-GCM over zlib of a JSON object of
name to base64; the key is scrypt of the passphrase (RFC 7914; n 2^17, r 8, p 1), the magic is
associated data. Names are checked against the list of what belongs into it before anything is
written, and the catalog is put in its place last.
Thread model: the exporter may run beside the daemon, the importer holds the daemon's lock.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.base.atomic import fsync_directory, make_folders, replace_file
from appliance.base.errors import ApplianceError, StorageError, UsageError
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.repository.key_slots import ScryptCost
from appliance.service.adoption import free_name
from appliance.service.daemon_lock import daemon_lock
from appliance.service.home import Home

MAGIC = b"HOLDCFG\x01"
_SALT_BYTES, _NONCE_BYTES = 32, 12
_COST = ScryptCost()  # part of the format
MAX_BUNDLE_BYTES = 256 << 20
MAX_CONTENT_BYTES = 1 << 30
_CATALOG = "catalog.sqlite"
_SINGLE = ("secrets.key", "appliance-id", "signing.key", "nfs-handles.key")
_BELONGS = re.compile(
    r"catalog\.sqlite|secrets\.key|appliance-id|signing\.key|nfs-handles\.key"
    r"|tls/(cert|key)\.pem|certificates/[A-Za-z0-9][A-Za-z0-9._-]{0,100}"
)


class ConfigBundleError(ApplianceError):
    """The file is no configuration bundle, is damaged, or the passphrase is another one; nothing
    was changed."""

    code = "config.bundle"


class ConfigPresentError(ApplianceError):
    """This appliance has a configuration already, which the import would replace. Give --replace if
    that is meant; what is there now is kept beside it."""

    code = "config.present"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedConfig:
    hosts: int
    jobs: int
    accounts: int
    kept: Path | None
    """Where the configuration from before lies."""


def export_config(home: Path, target: Path, passphrase: Secret) -> int:
    """Write the bundle, replacing `target`; return its size. Raises UsageError, StorageError."""
    if not passphrase.reveal():
        raise UsageError("an empty passphrase protects nothing")
    if not (home / _CATALOG).is_file():
        raise UsageError(f"there is no catalog in {home}")
    try:
        content = dict(_collected(home))
        plain = json.dumps(
            {name: base64.b64encode(raw).decode() for name, raw in sorted(content.items())}
        ).encode()
        salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
        key = _COST.derive(passphrase, salt)
        sealed = AESGCM(key.reveal()).encrypt(nonce, zlib.compress(plain), MAGIC)
        bundle = MAGIC + salt + nonce + sealed
        replace_file(target, bundle)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error
    return len(bundle)


def import_config(
    home: Path, bundle: Path, passphrase: Secret, *, replace: bool = False
) -> ImportedConfig:
    """Make this the configuration of `home`, which no daemon may serve meanwhile.

    A crash leaves what was there, or an import that may be repeated with `replace`.

    Raises ConfigBundleError, ConfigPresentError, DaemonRunningError, CatalogVersionError (the
    bundle is of a newer version), StorageError.
    """
    content = _opened(bundle, passphrase)
    Home(home).prepare()
    with daemon_lock(home):
        if not replace and _has_configuration(home):
            raise ConfigPresentError(f"{home} has hosts, jobs or accounts")
        try:
            with tempfile.TemporaryDirectory(prefix="config-", dir=home) as name:
                counts = _lay_out(Path(name), content)
                kept = _put_in_place(Path(name), home)
        except OSError as error:
            raise StorageError(f"{error.filename}: {error.strerror}") from error
    return ImportedConfig(hosts=counts[0], jobs=counts[1], accounts=counts[2], kept=kept)


def _collected(home: Path) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory(prefix="config-", dir=home) as name:
        copy = Path(name) / _CATALOG
        with Catalog.open(home) as catalog:
            catalog.copy_to(copy)
        yield _CATALOG, copy.read_bytes()
    names = [*_SINGLE, "tls/cert.pem", "tls/key.pem"]
    names += [f"certificates/{path.name}" for path in sorted((home / "certificates").glob("*"))]
    for each in names:
        path = home / each
        if path.is_file() and not path.is_symlink() and _BELONGS.fullmatch(each):
            yield each, path.read_bytes()


def _opened(bundle: Path, passphrase: Secret) -> dict[str, bytes]:
    try:
        with bundle.open("rb") as file:
            raw = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{bundle}: {error.strerror}") from error
    head = len(MAGIC) + _SALT_BYTES + _NONCE_BYTES
    if len(raw) > MAX_BUNDLE_BYTES or len(raw) < head or not raw.startswith(MAGIC):
        raise ConfigBundleError(f"{bundle} does not begin as a configuration bundle does")
    salt, nonce = raw[len(MAGIC) : head - _NONCE_BYTES], raw[head - _NONCE_BYTES : head]
    try:
        key = _COST.derive(passphrase, salt)
        packed = AESGCM(key.reveal()).decrypt(nonce, raw[head:], MAGIC)
    except InvalidTag:
        raise ConfigBundleError(f"{bundle}: another passphrase, or damaged") from None
    return _unpacked(packed, bundle)


def _unpacked(packed: bytes, bundle: Path) -> dict[str, bytes]:
    try:
        inflater = zlib.decompressobj()
        document = json.loads(inflater.decompress(packed, MAX_CONTENT_BYTES))
        content = {str(k): base64.b64decode(v, validate=True) for k, v in document.items()}
    except (zlib.error, ValueError, binascii.Error, AttributeError, TypeError):
        raise ConfigBundleError(f"{bundle}: its content is not what it should be") from None
    strange = [name for name in content if not _BELONGS.fullmatch(name)]
    if strange or _CATALOG not in content or "secrets.key" not in content:
        raise ConfigBundleError(f"{bundle}: something in it is too much, or missing")
    return content


def _has_configuration(home: Path) -> bool:
    if not (home / _CATALOG).exists():
        return False
    with Catalog.open(home) as catalog:
        return any(_counts(catalog))


def _counts(catalog: Catalog) -> tuple[int, int, int]:
    return len(catalog.hosts.list()), len(catalog.jobs.list()), len(catalog.accounts.list())


def _lay_out(folder: Path, content: dict[str, bytes]) -> tuple[int, int, int]:
    """Write it beside and open it: what this version cannot use is refused with nothing moved."""
    for name, raw in content.items():
        path = folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        replace_file(path, raw)
    with Catalog.open(folder) as catalog:
        return _counts(catalog)


def _put_in_place(folder: Path, home: Path) -> Path | None:
    """The old files go to `before-import-N`, the new ones take their places, the catalog last."""
    old = [path for path in home.glob("catalog.sqlite*") if path.name != "catalog.sqlite.lock"]
    old += [home / name for name in (*_SINGLE, "tls", "certificates") if (home / name).exists()]
    kept = free_name(home / "before-import") if old else None
    if kept is not None:
        kept.mkdir(mode=0o700)
        for path in sorted(old, key=lambda path: path.name.startswith("catalog")):
            path.rename(kept / path.name)
    for name in (*_SINGLE, "tls", "certificates", _CATALOG):
        if (folder / name).exists():
            (folder / name).replace(home / name)
    make_folders(home)
    fsync_directory(home)
    return kept
