"""Update bundles of later versions: this source with another number, and one that does not work."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from appliance.machine.update_bundle import (
    read_manifest,
    unpack,
    write_bundle,
)
from ova.inputs import PYTHON, ROOT, signing_key

_BROKEN = '\nraise RuntimeError("this version was made not to work")\n'


def later_bundle(folder: Path, present: Path, version: str, *, works: bool) -> Path:
    """Of the wheels in the bundle `present`, with Holdfast's own replaced."""
    folder.mkdir()
    wheels = folder / "wheels"
    wheels.mkdir()
    with present.open("rb") as file:
        unpack(file, read_manifest(file, signing_key().public_key()), wheels)
    for old in wheels.glob("holdfast-*.whl"):
        old.unlink()
    source = folder / "source"
    keep = ("appliance", "vmware", "hyperv", "nbd_server", "nfs_server", "lab")
    for name in keep:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    path = source / "appliance/base/version.py"
    path.write_text(f'"""The version of Holdfast."""\n\n__version__ = "{version}"\n')
    if not works:
        with (source / "appliance/service/job_service.py").open("a") as file:
            file.write(_BROKEN)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*command, str(wheels), str(source)], check=True, timeout=300)
    target = folder / f"holdfast-{version}.update"
    made = sorted(wheels.glob("*.whl"))
    write_bundle(target, made, version=version, python=PYTHON, key=signing_key())
    return target
