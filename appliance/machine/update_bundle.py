"""Update bundles: the wheels of one version, signed.

A bundle is one file: magic (8 bytes), length of the manifest (u32, little-endian), manifest (JSON),
Ed25519 signature over all of that (64 bytes), then the files of the manifest in its order. The
manifest names version, Python and each file with size and SHA-256, so the one signature covers
everything. Nothing is believed before the signature was checked, and no file is used before its
hash was.
Thread model: pure but for the files named. Source: RFC 8032.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.base.errors import ApplianceError

MAGIC = b"HOLDUPD\x01"
_LENGTH = struct.Struct("<I")
SIGNATURE_BYTES = 64
MAX_MANIFEST_BYTES = 256 << 10
MAX_FILE_BYTES = 256 << 20
_COPY_BYTES = 1 << 20


class UpdateBundleError(ApplianceError):
    """The file is no update bundle, or is damaged; nothing was changed. Get it again."""

    code = "update.bundle"


class UpdateSignatureError(ApplianceError):
    """The update was not signed by the key this appliance trusts; nothing was changed. Do not use
    it, unless you changed that key yourself."""

    code = "update.signature"


class BundledFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,190}\.whl$")]
    size_bytes: Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class UpdateManifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+-]{0,62}$")]
    python: Annotated[str, Field(pattern=r"^3\.[0-9]{1,2}$")]
    files: Annotated[tuple[BundledFile, ...], Field(min_length=1, max_length=200)]


def write_bundle(
    target: Path, wheels: Sequence[Path], *, version: str, python: str, key: Ed25519PrivateKey
) -> UpdateManifest:
    """Same input, same bytes. Raises OSError."""
    files = tuple(_described(path) for path in sorted(wheels, key=lambda path: path.name))
    manifest = UpdateManifest(version=version, python=python, files=files)
    raw = manifest.model_dump_json().encode()
    head = MAGIC + _LENGTH.pack(len(raw)) + raw
    folder = {path.name: path for path in wheels}
    with target.open("wb") as out:
        out.write(head + key.sign(head))
        for file in files:
            out.write(folder[file.name].read_bytes())
    return manifest


def read_manifest(file: BinaryIO, key: Ed25519PublicKey) -> UpdateManifest:
    """Leaves `file` where the first file begins.

    Raises UpdateBundleError, UpdateSignatureError, OSError.
    """
    head = file.read(len(MAGIC) + _LENGTH.size)
    if len(head) < len(MAGIC) + _LENGTH.size or not head.startswith(MAGIC):
        raise UpdateBundleError("it does not begin as an update bundle does")
    (length,) = _LENGTH.unpack(head[len(MAGIC) :])
    if length > MAX_MANIFEST_BYTES:
        raise UpdateBundleError(f"a manifest of {length} bytes")
    raw, signature = file.read(length), file.read(SIGNATURE_BYTES)
    try:
        key.verify(signature, head + raw)
    except InvalidSignature:
        raise UpdateSignatureError("the signature is not that of the trusted key") from None
    try:
        return UpdateManifest.model_validate_json(raw)
    except ValidationError as error:
        raise UpdateBundleError(f"the manifest: {error.errors()[0]['msg']}") from None


def unpack(file: BinaryIO, manifest: UpdateManifest, folder: Path) -> None:
    """Write the wheels into `folder`, each only if it is what was signed.

    Raises UpdateBundleError, OSError.
    """
    for each in manifest.files:
        temp = folder / f".{each.name}.part"
        digest = hashlib.sha256()
        left = each.size_bytes
        with temp.open("wb") as out:
            while left:
                data = file.read(min(left, _COPY_BYTES))
                if not data:
                    raise UpdateBundleError(f"it ends within {each.name}")
                digest.update(data)
                out.write(data)
                left -= len(data)
        if digest.hexdigest() != each.sha256:
            temp.unlink()
            raise UpdateBundleError(f"{each.name} is not what was signed")
        temp.replace(folder / each.name)
    if file.read(1):
        raise UpdateBundleError("something follows the last file")


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Raises UpdateSignatureError: there is none, so nothing is trusted."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UpdateSignatureError(f"no trusted key in {path}: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UpdateSignatureError(f"{path} holds no Ed25519 key")
    return key


def _described(path: Path) -> BundledFile:
    raw = path.read_bytes()
    if not re.fullmatch(r"[\w.+-]+\.whl", path.name):
        raise ValueError(f"{path.name} is no wheel")
    return BundledFile(name=path.name, size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
