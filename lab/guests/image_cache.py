"""Builds lab guests once and keeps them: a cache keyed by recipe and package versions.

The recipe is this folder's own files (without those named after another guest), so any change to
them makes a new image; a Debian update does too. An image appears under its name only when it is
whole; a lock file keeps two processes from building the same guest at once. Cached images are
originals: boot a copy (`copy_sparse`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from pathlib import Path

from appliance.base.atomic import fsync_directory
from lab.guests import debian, tiny, uefi
from lab.guests.packages import versions


class GuestKind(StrEnum):
    TINY = "tiny"
    DEBIAN = "debian"
    UEFI = "uefi"


_PACKAGES = {
    GuestKind.TINY: tiny.PACKAGES,
    GuestKind.DEBIAN: debian.PACKAGES,
    GuestKind.UEFI: uefi.PACKAGES,
}
_BUILDERS = {
    GuestKind.TINY: tiny.build_tiny,
    GuestKind.DEBIAN: debian.build_debian,
    GuestKind.UEFI: uefi.build_uefi,
}
_BUILT_UPON = {GuestKind.UEFI: GuestKind.TINY}


def build(kind: GuestKind, *, cache_folder: Path | None = None) -> Path:
    """Return the raw image of a guest, building it when the cache lacks it; never write to it."""
    folder = cache_folder or default_cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"guest-{kind}-{_recipe_hash(kind)}.raw"
    if not image.exists():
        with _lock(folder / f".guest-{kind}.lock"):
            if not image.exists():  # another process may have built it while we waited
                _build_whole(kind, image)
    return image


def default_cache_folder() -> Path:
    if configured := os.environ.get("HOLDFAST_CACHE"):
        return Path(configured)
    return Path.home() / ".cache" / "holdfast"


def _build_whole(kind: GuestKind, image: Path) -> None:
    temp = image.with_suffix(".tmp")
    temp.unlink(missing_ok=True)  # a killed build's; the lock is ours
    try:
        _BUILDERS[kind](temp)
        with temp.open("rb") as file:
            os.fsync(file.fileno())
        temp.replace(image)
    finally:
        temp.unlink(missing_ok=True)
    fsync_directory(image.parent)


@cache  # asking apt for versions takes most of a second
def _recipe_hash(kind: GuestKind) -> str:
    recipe = hashlib.sha256()
    own = {kind, _BUILT_UPON.get(kind, kind)}
    others = tuple(other.value for other in GuestKind if other not in own)
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".sh") and not path.name.startswith(others):
            recipe.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    for name, version in sorted(versions(_PACKAGES[kind]).items()):
        recipe.update(f"{name} {version}\n".encode())
    return recipe.hexdigest()[:16]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by closing, also when we are killed
        yield
