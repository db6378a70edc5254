"""VMDK descriptors: what hosts write is understood, what they would not write is refused."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.units import GIB, MIB
from vmware.vmdk_descriptor import (
    MAX_DESCRIPTOR_BYTES,
    NO_PARENT,
    Descriptor,
    VmdkError,
    VmdkExtent,
    format_descriptor,
    geometry,
    parse_descriptor,
)

_ESXI = b"""# Disk DescriptorFile
version=3
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
isNativeSnapshot="no"
createType="vmfs"

# Extent description
RW 33554432 VMFS "web server-flat.vmdk"

# Change Tracking File
changeTrackPath="web server-ctk.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "2088"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.longContentID = "2c3e1c1f8a3d6a2a1d2b7c9dfffffffe"
ddb.thinProvisioned = "1"
ddb.uuid = "60 00 C2 9b 69 4e 2a 11-0b 8c 40 f2 18 7a 33 55"
ddb.virtualHWVersion = "19"
"""
_DELTA = b"""# Disk DescriptorFile
version=1
CID=0a0b0c0d
parentCID=fffffffe
createType="seSparse"
parentFileNameHint="web.vmdk"
# Extent description
RW 2048 SESPARSE "web-000001-sesparse.vmdk"
"""


def test_a_flat_base_of_esxi_is_understood() -> None:
    """The extent's name, the change tracking file, and the data base."""
    parsed = parse_descriptor(_ESXI)
    assert parsed.extents == (
        VmdkExtent(access="RW", sectors=33554432, kind="VMFS", file_name="web server-flat.vmdk"),
    )
    assert parsed.size_bytes == 16 * GIB
    assert (parsed.version, parsed.cid, parsed.parent_cid) == (3, 0xFFFFFFFE, NO_PARENT)
    assert parsed.change_track_path == "web server-ctk.vmdk"
    assert dict(parsed.database)["uuid"].startswith("60 00 C2 9b")


def test_a_delta_names_its_parent() -> None:
    """So that it is not taken for a disk by itself."""
    parsed = parse_descriptor(_DELTA)
    assert (parsed.create_type, parsed.parent_file_name) == ("seSparse", "web.vmdk")
    assert parsed.parent_cid == 0xFFFFFFFE
    assert parsed.extents[0].kind == "SESPARSE"


def test_hosted_flat_extents_and_line_ends_are_understood() -> None:
    """Workstation writes an offset, Windows line ends, and pads the file with zeros."""
    text = b'# Disk DescriptorFile\r\nversion=1\r\nCID=1\r\ncreateType="twoGbMaxExtentFlat"\r\n'
    text += b'RW 4192256 FLAT "a-f001.vmdk" 0\r\nRW 2048 FLAT "a-f002.vmdk" 16\r\n' + bytes(100)
    first, second = parse_descriptor(text).extents
    assert (first.start_sector, second.start_sector) == (0, 16)
    assert parse_descriptor(text).parent_cid == NO_PARENT


@pytest.mark.parametrize(
    ("declared", "codec"), [("UTF-8", "utf-8"), ("windows-1252", "cp1252"), ("GBK", "gbk")]
)
def test_names_in_the_declared_encoding(declared: str, codec: str) -> None:
    """VMware products write the encoding of the machine they run on."""
    name = "数据" if codec == "gbk" else "Büro"
    text = f'# Disk DescriptorFile\nencoding="{declared}"\nversion=1\nCID=1\ncreateType="vmfs"\n'
    text += f'RW 1 VMFS "{name}-flat.vmdk"\n'
    assert parse_descriptor(text.encode(codec)).extents[0].file_name == f"{name}-flat.vmdk"


_LINES = _ESXI.decode().splitlines()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"KDMV" + bytes(508),
        _ESXI.replace(b"# Disk DescriptorFile", b"# Something else"),
        _ESXI.replace(b"RW 33554432", b"RW 0"),
        _ESXI.replace(b"RW 33554432", b"RW -1"),
        _ESXI.replace(b"RW 33554432", b"RW 99999999999999999999"),
        _ESXI.replace(b"RW 33554432", b"RX 33554432"),
        _ESXI.replace(b'RW 33554432 VMFS "web server-flat.vmdk"', b""),
        _ESXI.replace(b"version=3", b"version=three"),
        _ESXI.replace(b"version=3", b""),
        _ESXI.replace(b"CID=fffffffe", b"CID=fffffffe0"),
        _ESXI.replace(b'createType="vmfs"', b""),
        _ESXI.replace(b'createType="vmfs"', b'createType="vmfs"\ncreateType="sesparse"'),
        _ESXI.replace(b'encoding="UTF-8"', b'encoding="rot13"'),
        _ESXI.replace(b"web server-flat", b"web\x00server-flat"),
        _ESXI.replace(b"web server-flat", b"web\xffserver-flat"),
        _ESXI.replace(b"web server-flat", b"w" * 2000),
        _ESXI + b"what is this\n",
        _ESXI + b"#" * MAX_DESCRIPTOR_BYTES,
        _ESXI + b'RW 1 VMFS "a"\n' * 300,
        _ESXI + b'RW 137438953472 VMFS "a"\n' * 3,
    ],
)
def test_what_is_no_sound_descriptor_is_refused(text: bytes) -> None:
    """With a typed error that does not repeat untrusted text at length."""
    with pytest.raises(VmdkError) as caught:
        parse_descriptor(text)
    assert len(str(caught.value)) < 200


_names = st.text(
    st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"], blacklist_characters='"\x85'),
    min_size=1,
    max_size=60,
).filter(lambda name: name.strip() == name)
_extents = st.builds(
    VmdkExtent,
    access=st.sampled_from(["RW", "RDONLY", "NOACCESS"]),
    sectors=st.integers(1, 1 << 30),
    kind=st.sampled_from(["VMFS", "FLAT", "SESPARSE", "ZERO"]),
    file_name=_names,
    start_sector=st.none() | st.integers(0, 1 << 30),
)
_descriptors = st.builds(
    Descriptor,
    version=st.integers(1, 3),
    cid=st.integers(0, NO_PARENT),
    parent_cid=st.integers(0, NO_PARENT),
    create_type=st.sampled_from(["vmfs", "streamOptimized", "monolithicFlat"]),
    extents=st.lists(_extents, min_size=1, max_size=5).map(tuple),
    parent_file_name=st.none() | _names,
    change_track_path=st.none() | _names,
    database=st.dictionaries(
        st.sampled_from(["uuid", "adapterType", "geometry.heads"]), _names
    ).map(lambda pairs: tuple(pairs.items())),
)


@given(_descriptors)
def test_what_is_written_is_read_back(descriptor: Descriptor) -> None:
    """Format and parser agree on every value."""
    assert parse_descriptor(format_descriptor(descriptor)) == descriptor


@pytest.mark.parametrize("value", ['a"b', "a\nb", "a\rb", "a\0b"])
def test_a_value_that_would_break_the_text_is_not_written(value: str) -> None:
    """No name can add lines to a descriptor."""
    base = parse_descriptor(_ESXI)
    extent = replace(base.extents[0], file_name=value)
    for broken in (
        replace(base, extents=(extent,)),
        replace(base, parent_file_name=value),
        replace(base, database=(("uuid", value),)),
    ):
        with pytest.raises(VmdkError):
            format_descriptor(broken)


def test_mutated_descriptors_give_a_value_or_a_typed_error() -> None:
    """Ten thousand damaged files: never another exception."""
    rng = random.Random(20260607)
    for _ in range(10_000):
        data = bytearray(rng.choice([_ESXI, _DELTA]))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
        try:
            parse_descriptor(bytes(data))
        except VmdkError:
            continue


def test_geometry_is_that_of_a_scsi_disk() -> None:
    """255 heads and 63 sectors from 1 GiB on, at most 65535 cylinders."""
    assert dict(geometry(16 * GIB))["geometry.cylinders"] == "2088"
    assert dict(geometry(100 * MIB))["geometry.heads"] == "64"
    assert dict(geometry(60 << 40))["geometry.cylinders"] == "65535"
