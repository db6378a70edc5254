"""Formats are told by headers, and no header makes us open another file."""

from __future__ import annotations

from pathlib import Path
from struct import pack

import pytest

from appliance.sources.errors import ExternalFileError, ImageFormatError
from appliance.sources.image_format import ImageFormat, settle_format


def settle(path: Path, content: bytes, asked: ImageFormat = ImageFormat.AUTO) -> ImageFormat:
    path.write_bytes(content.ljust(8192, b"\0"))
    return settle_format(path, asked, allow_external=False)


def qcow2(version: int = 3, backing_at: int = 0, features: int = 0) -> bytes:
    head = pack(">4sIQI", b"QFI\xfb", version, backing_at, 8 if backing_at else 0)
    return head.ljust(72, b"\0") + pack(">Q", features)


def vmdk(descriptor: bytes, capacity: int = 2048) -> bytes:
    head = pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, 1, 2)
    return head.ljust(512, b"\0") + descriptor


def vhd(kind: int, current_bytes: int) -> bytes:
    footer = pack(">8sIIQI4sI4sQQII", b"conectix", 2, 1 << 16, 0, 0, b"win ", 1, b"Wi2k",
                  current_bytes, current_bytes, 0, kind)  # fmt: skip
    checksum = ~sum(footer) & 0xFFFF_FFFF
    return (footer + pack(">I", checksum)).ljust(512, b"\0")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", ImageFormat.RAW),
        (b"\xebc\x90 boot sector", ImageFormat.RAW),
        (qcow2(), ImageFormat.QCOW2),
        (qcow2(version=2), ImageFormat.QCOW2),
        (vmdk(b"CID=1\nparentCID=ffffffff\n"), ImageFormat.VMDK),
        (b"vhdxfile", ImageFormat.VHDX),
        (vhd(3, 1 << 20), ImageFormat.VHD),
        (bytes(7680) + vhd(2, 7680), ImageFormat.VHD),
        (bytes(7680) + vhd(2, 4096), ImageFormat.RAW),
        (b"conectix without a checksum", ImageFormat.RAW),
    ],
)
def test_a_file_is_what_its_header_says(tmp_path: Path, content: bytes, found: ImageFormat) -> None:
    """The name plays no part; anything unknown is raw."""
    assert settle(tmp_path / "disk.vmdk", content) is found


@pytest.mark.parametrize(
    "content",
    [
        qcow2(backing_at=4096),
        qcow2(features=4),
        vmdk(b"CID=1\nparentCID=12345678\n"),
        vmdk(b'parentCID=ffffffff\nparentFileNameHint="/etc/shadow"\n'),
        vmdk(b'RW 1 FLAT "/etc/shadow" 0\n', capacity=0),
        b'# Disk DescriptorFile\nRW 1 FLAT "/etc/shadow" 0\n',
        b"COWD",
        vhd(4, 1 << 20),
    ],
)
def test_an_image_that_refers_to_other_files_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whether the format was found or named, until the operator allows external files."""
    with pytest.raises(ExternalFileError, match=r"disk\.img"):
        settle(tmp_path / "disk.img", content)
    settle_format(tmp_path / "disk.img", ImageFormat.AUTO, allow_external=True)
    assert settle(tmp_path / "disk.img", content, ImageFormat.RAW) is ImageFormat.RAW


def test_a_format_that_is_named_must_be_there(tmp_path: Path) -> None:
    """A raw file is not opened as qcow2, nor one format as another; damage is reported."""
    for content, asked in (
        (b"", ImageFormat.QCOW2),
        (qcow2(), ImageFormat.VMDK),
        (qcow2(version=9), ImageFormat.AUTO),
    ):
        with pytest.raises(ImageFormatError):
            settle(tmp_path / "disk", content, asked)
