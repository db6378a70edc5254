"""`holdfast export nfs P…`: the disks of recovery points as files on an NFSv3 server."""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.units import parse_size
from appliance.cli.numbers import port
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, note, show
from appliance.cli.overlay_options import (
    add_overlay_options,
    check_overlay_options,
    open_overlay,
    overlay_root,
)

if TYPE_CHECKING:
    from appliance.blocks.device import BlockReader
    from appliance.exports.datastore.tree import SessionTree
    from appliance.repository.manifest import Manifest
    from appliance.repository.repository import Repository

_WAIT_S = 0.2
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    nfs = verbs.add_parser("nfs", parents=[common], help="over NFSv3")
    nfs.add_argument("points", nargs="+", metavar="P")
    nfs.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS")
    nfs.add_argument("--port", type=port, default=2049, metavar="N", help="0: a free one")
    nfs.add_argument(
        "--portmap",
        default="auto",
        choices=("auto", "register", "own", "none"),
        help="port 111: register with rpcbind, answer there, or neither (auto: what is possible)",
    )
    nfs.add_argument(
        "--client",
        action="append",
        metavar="NETWORK",
        help="who may mount: an address or network; needed unless bound to loopback",
    )
    add_overlay_options(nfs)
    nfs.add_argument("--cache", default="256M", metavar="SIZE", help="decoded chunks kept")
    nfs.set_defaults(run=run_nfs)


def run_nfs(args: argparse.Namespace) -> int:
    from appliance.exports.nfs import NfsServer, PortmapMode, handle_key, nfs_export

    check_overlay_options(args)
    clients = _clients(args)
    home = home_path(args)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        open_repository(args, cache_bytes=parse_size(args.cache)) as repository,
        ExitStack() as stack,
    ):
        exports = []
        for name in args.points:
            manifest = repository.points.find(name)
            tree = _open_tree(args, repository, manifest, stack)
            path = f"/{manifest.point_id}"
            exports.append(nfs_export(path, _tree_id(manifest.point_id), tree, clients))
        server = NfsServer(
            key=handle_key(home / "nfs-handles.key"),
            host=args.bind,
            port=args.port,
            portmap_mode=PortmapMode(args.portmap),
        )
        for export in exports:
            server.publish(export)
        stack.enter_context(server)
        hidden = "" if server.port == 2049 else f"?nfsport={server.port}&mountport={server.port}"
        uris = [f"nfs://{args.bind}{export.path}{hidden}" for export in exports]
        document = {
            "address": args.bind,
            "port": server.port,
            "pid": os.getpid(),
            "writable": args.writable,
            "exports": [
                {"path": export.path, "uri": uri} for export, uri in zip(exports, uris, strict=True)
            ],
        }
        show(args, document, lambda: "\n".join(uris))
        note("serving; interrupt to stop")
        while not args.cancel.cancelled:
            args.cancel.wait(_WAIT_S)
    return ExitCode.SUCCESS


def _clients(args: argparse.Namespace) -> list[str]:
    if args.client:
        return list(args.client)
    if args.bind not in _LOOPBACK:
        raise UsageError(f"bound to {args.bind}: say with --client who may mount")
    return ["127.0.0.0/8", "::1"]


def _tree_id(point_id: str) -> int:
    """Stands in the handles, so it must be the same for the same point at every start."""
    return int.from_bytes(hashlib.sha256(point_id.encode()).digest()[:8], "big") | 1


def _open_tree(
    args: argparse.Namespace, repository: Repository, manifest: Manifest, stack: ExitStack
) -> SessionTree:
    """One folder with `disk-N.raw` for every disk of the point."""
    from appliance.blocks.read_ahead import ReadAheadReader
    from appliance.exports.datastore.tree import SessionTree

    disks: dict[int, BlockReader] = {}
    for disk in manifest.disks:
        served: BlockReader = ReadAheadReader(repository.open_image(manifest, disk.number))
        stack.callback(served.close)
        if args.writable:
            served = open_overlay(args, served, manifest, disk, stack)
        disks[disk.number] = served
    if args.writable and not args.discard:
        folder = overlay_root(args, manifest) / "tree"
    else:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-nfs-")))
    tree = SessionTree(folder, disks, read_only=not args.writable)
    stack.callback(tree.close)
    for number in disks:
        tree.add_disk(tree.root, f"disk-{number}.raw".encode(), number)
    return tree
