"""A sparse file with the bytes a `FixedVhdxLayout` describes."""

from __future__ import annotations

from pathlib import Path

from hyperv.vhdx.layout import FixedVhdxLayout, Part


def write_layout(layout: FixedVhdxLayout, path: Path, content: dict[int, bytes]) -> None:
    """`content`: disk offset -> bytes; the rest of the disk is holes."""
    with path.open("wb") as file:
        file.truncate(layout.file_bytes)
        for offset, length in layout.head_extents():
            file.seek(offset)
            file.write(layout.head(offset, length))
        for disk_offset, data in content.items():
            for piece in layout.pieces(layout.payload_offset + disk_offset, len(data)):
                assert piece.part is Part.DISK
                file.seek(piece.offset)
                file.write(data[piece.disk_offset - disk_offset :][: piece.length])
