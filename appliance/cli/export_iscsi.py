"""`holdfast export iscsi P`: the disks of a recovery point on an iSCSI target.

One LUN with an NTFS volume that holds every disk as a VHDX file, as Hyper-V starts VMs from, or
with --raw a LUN per disk.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.units import parse_size
from appliance.cli.numbers import port
from appliance.cli.options import open_repository, read_secret_file
from appliance.cli.output import ExitCode, note, show
from appliance.cli.overlay_options import (
    add_overlay_options,
    check_overlay_options,
    open_overlay,
    overlay_root,
)

if TYPE_CHECKING:
    from appliance.blocks.overlay import Overlay
    from appliance.exports.iscsi.target import Chap, IscsiTarget, Lun
    from appliance.repository.manifest import Manifest
    from appliance.repository.repository import Repository

_WAIT_S = 0.2
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    iscsi = verbs.add_parser("iscsi", parents=[common], help="over iSCSI, for Hyper-V")
    iscsi.add_argument("point", metavar="P")
    iscsi.add_argument("--disk", type=int, metavar="N", help="only this disk")
    iscsi.add_argument(
        "--raw",
        action="store_true",
        help="each disk as a LUN of its own, instead of as VHDX files on an NTFS volume",
    )
    iscsi.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS")
    iscsi.add_argument("--port", type=port, default=3260, metavar="N", help="0: a free one")
    iscsi.add_argument(
        "--initiator",
        action="append",
        metavar="WHO",
        help="who may log in: an iSCSI name, an address or a network; needed unless bound to"
        " loopback; may be repeated",
    )
    iscsi.add_argument("--chap-user", default="holdfast", metavar="U")
    iscsi.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="its first line is the CHAP password, 12 to 16 characters (default: a new one, shown)",
    )
    add_overlay_options(iscsi)
    iscsi.add_argument("--cache", default="256M", metavar="SIZE", help="decoded chunks kept")
    iscsi.set_defaults(run=run_iscsi)


def run_iscsi(args: argparse.Namespace) -> int:
    from appliance.exports.iscsi.server import IscsiServer
    from appliance.exports.iscsi.target import IscsiTarget, target_name

    check_overlay_options(args)
    initiators = _initiators(args)
    chap, password = _chap(args)
    with (
        open_repository(args, cache_bytes=parse_size(args.cache)) as repository,
        ExitStack() as stack,
    ):
        manifest = repository.points.find(args.point)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-iscsi-")))
        target = IscsiTarget(
            name=target_name(_identity(manifest, "")),
            luns=_luns(args, repository, manifest, scratch, stack),
            chap=chap,
            initiators=initiators,
        )
        server = IscsiServer(scratch / "luns", host=args.bind, port=args.port)
        server.publish(target)
        stack.enter_context(server)
        document = _document(args, manifest, target, server.port) | {"password": password}
        show(args, document, lambda: _text(document))
        note("serving; interrupt to stop")
        while not args.cancel.cancelled:
            args.cancel.wait(_WAIT_S)
    return ExitCode.SUCCESS


def _initiators(args: argparse.Namespace) -> tuple[str, ...]:
    if args.initiator:
        return tuple(args.initiator)
    if args.bind not in _LOOPBACK:
        raise UsageError(f"bound to {args.bind}: say with --initiator who may log in")
    return ("127.0.0.0/8",)


def _chap(args: argparse.Namespace) -> tuple[Chap, str | None]:
    """And the password as text if it was made here, to be shown once."""
    from appliance.exports.iscsi.target import Chap, new_secret

    if args.password_file:
        return Chap(user=args.chap_user, secret=read_secret_file(args.password_file)), None
    secret = new_secret()
    return Chap(user=args.chap_user, secret=secret), secret.reveal().decode()


def _luns(
    args: argparse.Namespace,
    repository: Repository,
    manifest: Manifest,
    scratch: Path,
    stack: ExitStack,
) -> tuple[Lun, ...]:
    from appliance.exports.iscsi.target import Lun

    devices = _devices(args, repository, manifest, scratch, stack)
    if args.raw:
        return tuple(
            Lun(
                number=lun,
                identity=_identity(manifest, f"disk {number}"),
                device=device,
                read_only=not args.writable,
            )
            for lun, (number, device) in enumerate(devices.items(), 1)
        )
    from appliance.exports.vhdx_volume.volume import (
        VolumeDisk,
        build_volume,
        has_volume,
        open_volume,
    )

    name = "volume" if args.disk is None else f"volume-of-disk-{args.disk}"
    folder = (overlay_root(args, manifest) if args.writable else scratch) / name
    if args.discard:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    if not has_volume(folder):
        disks = [
            VolumeDisk(
                number=number,
                size_bytes=device.size_bytes,
                content_id=f"{manifest.point_id}/{number}",
            )
            for number, device in devices.items()
        ]
        build_volume(folder, disks)
    volume = open_volume(folder, devices)
    stack.callback(volume.close)
    identity = _identity(manifest, name)
    return (Lun(number=1, identity=identity, device=volume.device, read_only=not args.writable),)


def _devices(
    args: argparse.Namespace,
    repository: Repository,
    manifest: Manifest,
    scratch: Path,
    stack: ExitStack,
) -> dict[int, Overlay]:
    """An overlay per disk, also of a read-only export, which throws it away."""
    from appliance.blocks.overlay import Overlay
    from appliance.blocks.read_ahead import ReadAheadReader

    devices: dict[int, Overlay] = {}
    for disk in manifest.disks:
        if args.disk not in (None, disk.number):
            continue
        image = ReadAheadReader(repository.open_image(manifest, disk.number))
        stack.callback(image.close)
        if args.writable:
            devices[disk.number] = open_overlay(args, image, manifest, disk, stack)
        else:
            overlay = Overlay.create(scratch / f"disk-{disk.number}", image, {})
            stack.callback(overlay.close)
            devices[disk.number] = overlay
    if not devices:
        raise UsageError(f"{manifest.point_id} has no disk {args.disk}")
    return devices


def _identity(manifest: Manifest, what: str) -> str:
    """The same for the same point at every start; at most 16 characters."""
    return hashlib.sha256(f"{manifest.point_id} {what}".encode()).hexdigest()[:16]


def _document(
    args: argparse.Namespace, manifest: Manifest, target: IscsiTarget, port: int
) -> dict[str, Any]:
    host = f"[{args.bind}]" if ":" in args.bind else args.bind
    return {
        "point_id": manifest.point_id,
        "portal": f"{host}:{port}",
        "target": target.name,
        "chap_user": target.chap.user,
        "pid": os.getpid(),
        "writable": args.writable,
        "luns": [
            {
                "lun": lun.number,
                "serial": lun.identity,
                "size_bytes": lun.device.size_bytes,
                "uri": f"iscsi://{host}:{port}/{target.name}/{lun.number}",
            }
            for lun in target.luns
        ],
    }


def _text(document: dict[str, Any]) -> str:
    lines = [
        f"portal    {document['portal']}",
        f"target    {document['target']}",
        f"CHAP user {document['chap_user']}",
    ]
    if document["password"]:
        lines.append(f"password  {document['password']}  (not shown again)")
    lines += [
        f"LUN {lun['lun']}     serial {lun['serial']}, {lun['size_bytes']} bytes"
        for lun in document["luns"]
    ]
    return "\n".join(lines)
