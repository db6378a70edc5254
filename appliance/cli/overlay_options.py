"""`--writable` and what goes with it: where an export keeps what its clients write."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.cli.options import home_path
from appliance.cli.output import note

if TYPE_CHECKING:
    from appliance.blocks.device import BlockReader
    from appliance.blocks.overlay import Overlay
    from appliance.repository.manifest import DiskEntry, Manifest


def add_overlay_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--writable", action="store_true", help="keep writes in an overlay, never in the point"
    )
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="DIR",
        help="where the writes are kept, and found again (default HOME/overlays/P)",
    )
    parser.add_argument(
        "--discard", action="store_true", help="drop the overlay when the export ends"
    )


def check_overlay_options(args: argparse.Namespace) -> None:
    """Raises UsageError."""
    if (args.overlay or args.discard) and not args.writable:
        raise UsageError("--overlay and --discard go with --writable")


def overlay_root(args: argparse.Namespace, manifest: Manifest) -> Path:
    return Path(args.overlay or home_path(args) / "overlays" / manifest.point_id)


def open_overlay(
    args: argparse.Namespace,
    image: BlockReader,
    manifest: Manifest,
    disk: DiskEntry,
    stack: ExitStack,
) -> Overlay:
    """Make the overlay of a disk, or go on with the one that is there."""
    from appliance.blocks.overlay import Overlay
    from appliance.blocks.overlay_errors import OverlayMissingError

    root = overlay_root(args, manifest)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"disk-{disk.number}"
    identity: dict[str, Any] = {"point": manifest.point_id, "disk": disk.number}
    try:
        overlay = Overlay.open(folder, image, identity)
        note(f"going on with the overlay in {folder}")
    except OverlayMissingError:
        overlay = Overlay.create(folder, image, identity)
    stack.callback(overlay.discard if args.discard else overlay.close)
    return overlay
