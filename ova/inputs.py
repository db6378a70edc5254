"""What a build is made from: version, time, wheels, the key that updates must be signed with."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from appliance.base.version import __version__
from lab.guests.packages import run

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
PYTHON = "3.11"  # of Debian 12
_WHEELS_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    version: str
    epoch: int
    """Seconds: the time that everything made here bears."""
    wheels: Path
    update_key: bytes
    """Public, PEM."""


def gather(work: Path) -> Inputs:
    """Build and fetch the wheels (network), find or make the key."""
    epoch = source_epoch()
    wheels = work / "wheels"
    build_wheels(wheels, epoch)
    public = signing_key().public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Inputs(version=__version__, epoch=epoch, wheels=wheels, update_key=pem)


def source_epoch() -> int:
    """SOURCE_DATE_EPOCH, else the time of the last commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    return int(run(["git", "-C", ROOT, "log", "-1", "--format=%ct"], timeout_s=30))


def build_wheels(folder: Path, epoch: int, *, source: Path = ROOT) -> None:
    """Holdfast and all it needs, as pinned in constraints.txt, for Debian 12's Python."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running != PYTHON:
        raise RuntimeError(f"wheels are for Python {PYTHON}; this is {running}")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--use-pep517"]
    command += [
        "--disable-pip-version-check",
        "--constraint",
        str(ROOT / "constraints.txt"),
        "--wheel-dir",
        str(folder),
    ]
    subprocess.run(
        [*command, str(source)],
        check=True,
        timeout=_WHEELS_S,
        env=os.environ
        | {"SOURCE_DATE_EPOCH": str(epoch), "PIP_CONSTRAINT": str(ROOT / "constraints.txt")},
    )


def signing_key() -> Ed25519PrivateKey:
    """HOLDFAST_UPDATE_KEY names the file; without it a key of one's own is made, once."""
    path = Path(os.environ.get("HOLDFAST_UPDATE_KEY", BUILD / "update-signing.key"))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Ed25519PrivateKey.generate()
        raw = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(raw)
        print(f"made {path}: keep it, only what it signs updates this appliance")
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise RuntimeError(f"{path} holds no Ed25519 key")
    return key
