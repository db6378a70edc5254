"""`holdfast export …`: serve a recovery point until interrupted."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.units import parse_size
from appliance.cli import export_iscsi, export_nfs
from appliance.cli.numbers import port
from appliance.cli.options import open_repository
from appliance.cli.output import ExitCode, note, show
from appliance.cli.overlay_options import (
    add_overlay_options,
    check_overlay_options,
    open_overlay,
)

if TYPE_CHECKING:
    from appliance.blocks.device import BlockReader
    from appliance.exports.nbd import NbdExport
    from appliance.repository.manifest import DiskEntry, Manifest
    from appliance.repository.repository import Repository

_WAIT_S = 0.2


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("export", help="serve a recovery point until interrupted")
    verbs = group.add_subparsers(metavar="PROTOCOL", required=True)

    nbd = verbs.add_parser("nbd", parents=[common], help="over NBD")
    nbd.add_argument("point", metavar="P")
    nbd.add_argument("--disk", type=int, metavar="N", help="only this disk, as default export")
    nbd.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS")
    nbd.add_argument("--port", type=port, default=10809, metavar="N", help="0: a free one")
    nbd.add_argument("--unix", type=Path, metavar="PATH", help="a Unix socket instead of TCP")
    nbd.add_argument(
        "--tls",
        type=Path,
        metavar="DIR",
        help="server-cert.pem, server-key.pem, and ca-cert.pem to verify clients",
    )
    add_overlay_options(nbd)
    nbd.add_argument("--cache", default="256M", metavar="SIZE", help="decoded chunks kept")
    nbd.set_defaults(run=run_nbd)

    export_nfs.add(verbs, common)
    export_iscsi.add(verbs, common)

    fuse = verbs.add_parser("fuse", parents=[common], help="as files in a folder (read-only)")
    fuse.add_argument("point", metavar="P")
    fuse.add_argument("folder", type=Path, metavar="DIR")
    fuse.add_argument("--allow-other", action="store_true", help="let other users read it")
    fuse.add_argument("--cache", default="256M", metavar="SIZE", help="decoded chunks kept")
    fuse.set_defaults(run=run_fuse)


def run_nbd(args: argparse.Namespace) -> int:
    from appliance.exports.nbd import NbdServer, NbdTls, TcpAddress

    check_overlay_options(args)
    cache_bytes = parse_size(args.cache)
    with open_repository(args, cache_bytes=cache_bytes) as repository, ExitStack() as stack:
        manifest = repository.points.find(args.point)
        disks = _chosen_disks(manifest, args.disk)
        exports = _nbd_exports(args, repository, manifest, disks, stack)
        address = args.unix or TcpAddress(host=args.bind, port=args.port)
        tls = NbdTls(directory=args.tls) if args.tls else None
        server = stack.enter_context(NbdServer(exports, address=address, tls=tls))
        document = {
            "point_id": manifest.point_id,
            "uri": server.uri(exports[0].name),
            "pid": os.getpid(),
            "writable": args.writable,
            "exports": [
                {"name": export.name, "uri": server.uri(export.name)} for export in exports
            ],
        }
        show(args, document, lambda: "\n".join(server.uri(export.name) for export in exports))
        note("serving; interrupt to stop")
        while not args.cancel.cancelled:
            args.cancel.wait(_WAIT_S)
    return ExitCode.SUCCESS


def _chosen_disks(manifest: Manifest, number: int | None) -> list[DiskEntry]:
    disks = [disk for disk in manifest.disks if number in (None, disk.number)]
    if not disks:
        raise UsageError(f"{manifest.point_id} has no disk {number}")
    return disks


def _nbd_exports(
    args: argparse.Namespace,
    repository: Repository,
    manifest: Manifest,
    disks: list[DiskEntry],
    stack: ExitStack,
) -> list[NbdExport]:
    """One export per disk, `disk-N`; the first is what a client gets that names none."""
    from appliance.blocks.read_ahead import ReadAheadReader
    from appliance.blocks.write_through import WriteThroughDevice
    from appliance.exports.nbd import NbdExport

    exports = []
    for disk in disks:
        served: BlockReader = ReadAheadReader(repository.open_image(manifest, disk.number))
        stack.callback(served.close)
        if args.writable:
            served = WriteThroughDevice(open_overlay(args, served, manifest, disk, stack))
        exports.append(
            NbdExport(
                name=f"disk-{disk.number}",
                disk=served,
                read_only=not args.writable,
                description=f"{manifest.vm} {manifest.point_id} disk {disk.number}",
            )
        )
    return exports


def run_fuse(args: argparse.Namespace) -> int:
    from appliance.exports.fuse import FuseExport

    with open_repository(args, cache_bytes=parse_size(args.cache)) as repository:
        manifest = repository.points.find(args.point)
        export = FuseExport(repository, manifest, args.folder, allow_other=args.allow_other)
        note(f"serving {manifest.point_id} in {args.folder}; interrupt to stop")
        export.serve()
    return ExitCode.SUCCESS
