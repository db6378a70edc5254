"""One virtual disk opened in a QEMU program: its chain as block nodes below a fixed top node.

The guest's device, exports and dirty bitmaps sit on the top node, a filter (`throttle` without
limits) that stays while snapshots, commits and migrations change what lies below it. So a bitmap
there records what the guest wrote, and nothing that the host moved.

The same code drives a running machine and a qemu-storage-daemon. Bitmaps are read through QEMU's
NBD export of the meta context `qemu:dirty-bitmap:`, with `qemu-img map` as client.
Thread model: one caller at a time, the operation that has the virtual machine.
Source: QEMU 7.2 qapi/block-core.json, docs/interop/bitmaps.rst, docs/interop/live-block-operations.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lab.esx.areas import Area, merged
from lab.esx.change_tracking import block_bytes
from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.disk_chain import DiskChain, file_node
from lab.esx.errors import HostError
from lab.esx.qmp import Qmp
from lab.esx.vmdk import DiskFile

THROTTLE_GROUP = "lab-unlimited"
_MAP_TIMEOUT_S = 60.0


def throttle_group() -> dict[str, Any]:
    """The object that the top nodes of a QEMU program share."""
    return {"qom-type": "throttle-group", "id": THROTTLE_GROUP}


class OpenDisk:
    """`name` is unique in its QEMU program, at most 16 characters of [a-z0-9].

    `stunned` keeps a guest still while a job that moved data ends: QEMU 7.2 aborts now and then
    when the guest writes in that moment (`child->perm & BLK_PERM_WRITE`), and a host stuns its
    guests there, too.
    """

    def __init__(
        self,
        datastores: Datastores,
        chain: DiskChain,
        name: str,
        *,
        stunned: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.top = f"{name}-top"
        self._datastores = datastores
        self._stunned = stunned
        self._name = name
        self._chain = chain
        self._counter = 0
        self._bitmap: str | None = None
        self._nodes: dict[DatastorePath, str] = {}

    @property
    def chain(self) -> DiskChain:
        return self._chain

    @property
    def tracked(self) -> bool:
        return self._bitmap is not None

    def start_nodes(self, *, read_only: bool = False) -> list[dict[str, Any]]:
        """BlockdevOptions that open the disk, in order; the last is the top node."""
        nodes = self._chain_nodes(self._chain, read_only=read_only)
        top = {
            "driver": "throttle",
            "node-name": self.top,
            "throttle-group": THROTTLE_GROUP,
            "file": nodes[-1]["node-name"],
        }
        if read_only:
            top["read-only"] = True
        return [*nodes, top]

    def open(self, qmp: Qmp, *, read_only: bool = False) -> None:
        """Add the nodes to a program that has the throttle group; undone when one fails."""
        added = []
        try:
            for node in self.start_nodes(read_only=read_only):
                qmp.execute("blockdev-add", node)
                added.append(node["node-name"])
        except HostError:
            for name in reversed(added):
                qmp.execute("blockdev-del", node_name=name)
            raise

    def close(self, qmp: Qmp) -> None:
        """Remove the nodes; nothing may use the top node any more."""
        qmp.execute("blockdev-del", node_name=self.top)
        for disk in self._chain.files:
            qmp.execute("blockdev-del", node_name=self._nodes.pop(disk.path))

    # ------------------------------------------------------------------ bitmaps

    def start_tracking(self, qmp: Qmp) -> None:
        qmp.execute("block-dirty-bitmap-add", self._bitmap_data(self._next_bitmap()))

    def stop_tracking(self, qmp: Qmp) -> None:
        if self._bitmap is not None:
            qmp.execute("block-dirty-bitmap-remove", node=self.top, name=self._bitmap)
            self._bitmap = None

    def clear_tracking(self, qmp: Qmp) -> None:
        if self._bitmap is not None:
            qmp.execute("block-dirty-bitmap-clear", node=self.top, name=self._bitmap)

    def take_written(self, qmp: Qmp, socket_path: Path) -> list[Area]:
        """What was written since tracking started; tracking ends. The guest must be stopped."""
        if self._bitmap is None:
            return []
        name = self._bitmap
        qmp.execute("block-dirty-bitmap-disable", node=self.top, name=name)
        areas = self._read_bitmap(qmp, name, socket_path)
        self.stop_tracking(qmp)
        return areas

    def _read_bitmap(self, qmp: Qmp, bitmap: str, socket_path: Path) -> list[Area]:
        export = f"{self._name}-map"
        qmp.execute(
            "nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(socket_path)}}}
        )
        try:
            qmp.execute(
                "block-export-add",
                {"type": "nbd", "id": export, "node-name": self.top, "name": export}
                | {"bitmaps": [bitmap]},
            )
            return _dirty_areas(socket_path, export, bitmap)
        finally:
            mark = qmp.event_mark
            exports = qmp.execute("query-block-exports")
            qmp.execute("nbd-server-stop")  # ends its exports, too
            if any(one["id"] == export for one in exports):
                qmp.wait_event(
                    lambda name, data: name == "BLOCK_EXPORT_DELETED" and data["id"] == export,
                    since=mark,
                    timeout_s=_MAP_TIMEOUT_S,
                )
            socket_path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ snapshots

    def snapshot_actions(self, qmp: Qmp, delta: DiskFile) -> list[dict[str, Any]]:
        """Open the empty delta and return the actions of the transaction that puts it on top."""
        leaf = self._nodes[self._chain.leaf.path]
        node = self._file_node(delta)
        qmp.execute("blockdev-add", {**node, "backing": None})
        overlay = node["node-name"]
        return [{"type": "blockdev-snapshot", "data": {"node": leaf, "overlay": overlay}}]

    def switch_bitmap_actions(self) -> tuple[list[dict[str, Any]], str, str | None]:
        """Actions that freeze the bitmap and start the next: (actions, new, frozen)."""
        new = self._next_name()
        actions = [{"type": "block-dirty-bitmap-add", "data": self._bitmap_data(new)}]
        if self._bitmap is not None:
            frozen = {"node": self.top, "name": self._bitmap}
            actions.append({"type": "block-dirty-bitmap-disable", "data": frozen})
        return actions, new, self._bitmap

    def snapshot_taken(self, delta: DiskFile) -> None:
        self._chain = DiskChain(files=(delta, *self._chain.files))

    def snapshot_failed(self, qmp: Qmp, delta: DiskFile) -> None:
        if (node := self._nodes.pop(delta.path, None)) is not None:
            qmp.execute("blockdev-del", node_name=node)

    def bitmap_switched(
        self, qmp: Qmp, new: str, frozen: str | None, socket_path: Path
    ) -> list[Area]:
        """After the transaction: what the frozen bitmap holds; it is removed."""
        self._bitmap = new
        if frozen is None:
            return []
        areas = self._read_bitmap(qmp, frozen, socket_path)
        qmp.execute("block-dirty-bitmap-remove", node=self.top, name=frozen)
        return areas

    # ------------------------------------------------------------------ moving data

    def merge(self, qmp: Qmp, child: DatastorePath, into: DatastorePath) -> None:
        """Write a delta into its parent and drop it from the chain, while the disk is in use.

        Raises:
            QmpError: the chain is as it was.
        """
        qmp.run_job(
            "block-commit",
            f"{self._name}-merge",
            completing=self._stunned,
            device=self.top,
            top_node=self._nodes[child],
            base_node=self._nodes[into],
        )
        qmp.execute("blockdev-del", node_name=self._nodes.pop(child))
        self._chain = DiskChain(
            files=tuple(disk for disk in self._chain.files if disk.path != child)
        )

    def renamed_parent(self, chain: DiskChain) -> None:
        """The descriptors were rewritten; the nodes stay."""
        self._chain = chain

    def mirror(self, qmp: Qmp, target: DiskChain) -> None:
        """Move the disk to other files while the guest writes.

        The target's leaf must be empty, and its parents equal to the present ones.
        """
        old = self._chain
        nodes = self._chain_nodes(target, read_only=False)
        for node in nodes:
            qmp.execute("blockdev-add", node)
        try:
            qmp.run_job(
                "blockdev-mirror",
                f"{self._name}-move",
                completing=self._stunned,
                device=self.top,
                target=nodes[-1]["node-name"],
                sync="top" if target.parents else "full",
                replaces=self._nodes[old.leaf.path],
            )
        except HostError:
            for node in reversed(nodes):
                qmp.execute("blockdev-del", node_name=node["node-name"])
            for disk in target.files:
                self._nodes.pop(disk.path)
            raise
        for disk in old.files:
            qmp.execute("blockdev-del", node_name=self._nodes.pop(disk.path))
        self._chain = target

    def resize(self, qmp: Qmp, capacity_bytes: int) -> None:
        qmp.execute("block_resize", node_name=self.top, size=capacity_bytes)

    # ------------------------------------------------------------------ nodes

    def _chain_nodes(self, chain: DiskChain, *, read_only: bool) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = []
        for disk in reversed(chain.files):
            node = self._file_node(disk, read_only=read_only)
            if nodes:
                node["backing"] = nodes[-1]["node-name"]
            nodes.append(node)
        return nodes

    def _file_node(self, disk: DiskFile, *, read_only: bool = False) -> dict[str, Any]:
        name = self._next_name()
        self._nodes[disk.path] = name
        node = file_node(self._datastores, disk, read_only=read_only)
        return {**node, "node-name": name}

    def _bitmap_data(self, name: str) -> dict[str, Any]:
        granularity = block_bytes(self._chain.capacity_bytes)
        return {"node": self.top, "name": name, "granularity": granularity}

    def _next_bitmap(self) -> str:
        self._bitmap = self._next_name()
        return self._bitmap

    def _next_name(self) -> str:
        self._counter += 1
        return f"{self._name}-{self._counter}"


def _dirty_areas(socket_path: Path, export: str, bitmap: str) -> list[Area]:
    """`qemu-img map` shows what a bitmap marks as not being data (x-dirty-bitmap)."""
    options = (
        f"driver=nbd,server.type=unix,server.path={socket_path},export={export},"
        f"x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
    )
    try:
        result = subprocess.run(
            ["qemu-img", "map", "--output=json", "--image-opts", options],
            capture_output=True,
            check=True,
            timeout=_MAP_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"cannot read a dirty bitmap: {error}") from error
    return merged(
        (entry["start"], entry["length"])
        for entry in json.loads(result.stdout)
        if not entry["data"]
    )
