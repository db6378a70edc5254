"""Open a disk image file or a block device as a source of `backup image`.

    with open_disk_image(Path("web.qcow2")) as disk:      # a BlockReader
        ...

Raw files and block devices are read directly (`raw_image`), VHDX and VHD by our own reader
(`hyperv_image`), qcow2 and VMDK through qemu-nbd (`qemu_nbd`). How the format is settled, and what
a hostile guest can do about it, stands in `image_format`.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from appliance.blocks.device import BlockReader
from appliance.sources.image_format import ImageFormat, settle_format
from appliance.sources.raw_image import RawImageReader


class DiskImage(BlockReader, Protocol):
    """A `BlockReader` that is closed at the end of a `with`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_disk_image(
    path: Path, format: ImageFormat | str = ImageFormat.AUTO, *, allow_external: bool = False
) -> DiskImage:
    """Open for reading; use it as a context manager or `close` it.

    Args:
        path: a regular file or a block device.
        format: AUTO takes a block device as raw and goes by the header of a file.
        allow_external: also open images that take content from other files (qcow2 backing and data
            files, VMDK descriptors with their extents, parents of differencing VHDX and VHD files,
            looked for in the same folder). Only for images no guest can have written.

    Raises:
        NotADiskError, ImageFormatError, ExternalFileError, ImageProgramError, SourceReadError.
    """
    settled = settle_format(path, ImageFormat(format), allow_external=allow_external)
    if settled is ImageFormat.RAW:
        return RawImageReader(path)
    # Imported by the format that needs them: together they take longer than a small increment.
    if settled in (ImageFormat.VHDX, ImageFormat.VHD):
        from appliance.sources.hyperv_image import HypervImageReader

        return HypervImageReader(path, allow_external=allow_external)
    from appliance.sources.qemu_nbd import QemuImageReader

    return QemuImageReader(path, settled, allow_external=allow_external)
