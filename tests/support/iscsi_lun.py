"""A LUN as the product shows it for an instant recovery: NTFS, one VHDX, a disk image below."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.base.secret import Secret
from appliance.blocks.overlay import Overlay
from appliance.exports.iscsi.server import IscsiServer
from appliance.exports.iscsi.target import Chap, IscsiTarget, Lun
from appliance.exports.vhdx_volume.volume import VolumeDisk, build_volume, open_volume
from tests.support.raw_file_reader import RawFileReader

SECRET = "sixteen-letters!"
SERIAL = "lun-of-the-test"
TARGET = "iqn.2026-01.net.holdfast:test"


@dataclass(frozen=True, slots=True)
class ServedLun:
    server: IscsiServer
    disk: Overlay

    def connection(self, secret: str = SECRET) -> dict[str, str | int]:
        """The parameters of `connect_iscsi`."""
        return {**self.portal(), "chap_user": "recovery", "chap_secret": secret}

    def portal(self) -> dict[str, str | int]:
        return {"portal": "127.0.0.1", "port": self.server.port, "target": TARGET}


@contextmanager
def served_lun(image: Path, folder: Path) -> Iterator[ServedLun]:
    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(tempfile.TemporaryDirectory(prefix="lun-"))
        reader = RawFileReader(image)
        stack.callback(reader.close)
        disk = Overlay.create(folder / "overlay", reader, {"disk": "test"})
        stack.callback(disk.close)
        described = VolumeDisk(number=1, size_bytes=disk.size_bytes, content_id="test")
        build_volume(folder / "volume", [described])
        volume = open_volume(folder / "volume", {1: disk})
        stack.callback(volume.close)
        server = IscsiServer(Path(mount) / "devices", host="127.0.0.1", port=_free_port())
        stack.enter_context(server)
        server.publish(
            IscsiTarget(
                name=TARGET,
                luns=(Lun(number=1, identity=SERIAL, device=volume.device),),
                chap=Chap(user="recovery", secret=Secret.of_text(SECRET)),
                initiators=("127.0.0.1",),
            )
        )
        yield ServedLun(server, disk)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
