"""Debian's part of the system disk: a tree of installed packages, as mmdebstrap leaves it.

Everything apt and dpkg do happens in the new tree: mmdebstrap calls apt with the tree as its root,
and the one hook only copies three files. Needs root, for owners and chroot; mounts are mmdebstrap's
own and gone when it ends. The tree is kept as a tar file, named by what went into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
from pathlib import Path

from lab.guests.packages import SUITE, debian_sources, run
from ova.packages import EXCLUDED, INCLUDED, PACKAGES

FILES = Path(__file__).with_name("files")
BUILD_TIMEOUT_S = 1500
_EARLY = ("etc/initramfs-tools/conf.d/holdfast", "etc/initramfs-tools/hooks/holdfast", "etc/fstab")
"""What must be there before the kernel is installed, which makes the initramfs."""


def base_tree(cache: Path, epoch: int) -> Path:
    """Return the tar of the tree, building it (minutes) unless the cache has it."""
    final = cache / f"ova-base-{recipe_digest(epoch)}.tar"
    if not final.exists():
        cache.mkdir(parents=True, exist_ok=True)
        temp = final.with_suffix(".tmp")
        try:
            _build(temp, epoch)
            temp.replace(final)
        finally:
            temp.unlink(missing_ok=True)
        for older in cache.glob("ova-base-*.tar"):  # half a GiB each, and every commit makes one
            if older != final:
                older.unlink()
    return final


def recipe_digest(epoch: int) -> str:
    """Changes with the lists, the early files and what the package sources offer at present."""
    recipe = hashlib.sha256(repr((PACKAGES, EXCLUDED, INCLUDED, epoch)).encode())
    for name in _EARLY:
        recipe.update((FILES / name).read_bytes())
    sources = debian_sources()
    recipe.update(sources.encode())
    indexes = run(["apt-get", "indextargets", "--format", "$(FILENAME)"], timeout_s=60)
    for name in sorted(indexes.split()):
        path = Path(name)
        if path.exists() and "Packages" in path.name:
            recipe.update(path.read_bytes())
    return recipe.hexdigest()[:16]


def _build(target: Path, epoch: int) -> None:
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar", "--quiet"]
    command += ["--include=" + ",".join(PACKAGES), "--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    command += [f"--dpkgopt=path-include={pattern}" for pattern in INCLUDED]
    command += ["--dpkgopt=force-confold", "--aptopt=Acquire::Languages none"]
    for name in _EARLY:  # mmdebstrap passes the tree as $1
        source = shlex.quote(str(FILES / name))
        command.append(f'--essential-hook=install -D -p {source} "$1"/{name}')
    command += [SUITE, str(target), "-"]
    _run_build(command, debian_sources(), epoch)


def _run_build(command: list[str], sources: str, epoch: int) -> None:
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    ) as build:
        try:
            _, errors = build.communicate(sources, timeout=BUILD_TIMEOUT_S)
        except BaseException:
            os.killpg(build.pid, signal.SIGTERM)  # mmdebstrap unmounts and removes its tree
            with contextlib.suppress(subprocess.TimeoutExpired):
                build.wait(timeout=30)
            raise
    if build.returncode:
        raise RuntimeError(f"mmdebstrap exited with {build.returncode}:\n{errors[-3000:]}")
