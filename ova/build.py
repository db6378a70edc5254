"""`make ova`: build/holdfast-VERSION.ova, .qcow2, .vhdx, .update and .cdx.json.

Needs root on Debian 12, for owners and chroot; everything happens under a temporary folder in
build/ that is gone at the end. The same commit and the same state of the package sources make the
same files, but for the VHDX.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from appliance.machine.update_bundle import write_bundle
from lab.guests.image_cache import default_cache_folder
from lab.guests.packages import run
from ova.archive import file_digest, write_ova
from ova.base_tree import base_tree
from ova.bill_of_materials import bill_of_materials
from ova.descriptor import DATA_BYTES, PackedDisk, descriptor
from ova.disk_files import write_qcow2, write_vhdx, write_vmdk
from ova.disk_image import make_disk
from ova.furnish import furnish
from ova.inputs import BUILD, PYTHON, Inputs, gather, signing_key


def main() -> int:
    if os.geteuid() != 0:
        print("the image is built as root: file owners and chroot", file=sys.stderr)
        return 2
    BUILD.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".ova-", dir=BUILD) as name:
        work = Path(name)
        for path in build(work):
            final = BUILD / path.name
            path.replace(final)
            print(f"{file_digest(final)}  {final.stat().st_size:>12}  {final}")
    print(f"built in {time.monotonic() - started_s:.0f} s")
    return 0


def build(work: Path) -> list[Path]:
    """Everything that is made, in `work`."""
    inputs = gather(work)
    tree = work / "root"
    unpack_tree(tree, inputs.epoch)
    furnish(tree, inputs)
    name = f"holdfast-{inputs.version}"
    made = {suffix: work / f"{name}.{suffix}" for suffix in ("ova", "qcow2", "vhdx", "cdx.json")}
    made["cdx.json"].write_bytes(bill_of_materials(tree, inputs.wheels, inputs.version))
    raw = work / "system.raw"
    make_disk(tree, raw, work, inputs.epoch)
    shutil.rmtree(tree)
    write_qcow2(raw, made["qcow2"])
    write_vhdx(raw, made["vhdx"])
    pack(made["ova"], name, raw, inputs)
    return [*made.values(), bundle(work, inputs)]


def pack(target: Path, name: str, system: Path, inputs: Inputs) -> None:
    """The OVA of a raw system disk and an empty data disk; leaves its parts beside it."""
    data = target.with_name("data.raw")
    with data.open("xb") as file:
        file.truncate(DATA_BYTES)
    disks, packed = [], []
    for raw, disk in ((system, f"{name}-system.vmdk"), (data, f"{name}-data.vmdk")):
        path = target.with_name(disk)
        write_vmdk(raw, path)
        disks.append(path)
        packed.append(
            PackedDisk(
                file_name=disk, file_bytes=path.stat().st_size, disk_bytes=raw.stat().st_size
            )
        )
    text = descriptor(version=inputs.version, system=packed[0], data=packed[1])
    write_ova(target, name, text, disks, inputs.epoch)


def unpack_tree(tree: Path, epoch: int) -> None:
    tar = base_tree(default_cache_folder(), epoch)
    tree.mkdir()
    run(["tar", "--numeric-owner", "--xattrs", "-xf", tar, "-C", tree], timeout_s=600)


def bundle(work: Path, inputs: Inputs) -> Path:
    """The update bundle of the same wheels, which takes appliances of older versions here."""
    target = work / f"holdfast-{inputs.version}.update"
    wheels = sorted(inputs.wheels.glob("*.whl"))
    write_bundle(target, wheels, version=inputs.version, python=PYTHON, key=signing_key())
    return target


if __name__ == "__main__":
    sys.exit(main())
