"""The lab's disk files: descriptors, delta containers, chains, and change tracking."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.esx.areas import clipped, merged, rounded
from lab.esx.change_tracking import (
    ChangeId,
    InvalidArgumentError,
    block_bytes,
    decode_tracking,
    new_tracking,
)
from lab.esx.datastore import Datastores, LabDatastore
from lab.esx.datastore_path import DatastorePath
from lab.esx.disk_chain import ChainReader, open_chain
from lab.esx.errors import FileFaultError
from lab.esx.qcow2 import CLUSTER_BYTES, empty_image
from lab.esx.vmdk import (
    delta_descriptor,
    flat_descriptor,
    parse_descriptor,
    read_disk_file,
    spaced_uuid,
)
from tests.support.needs import needs

MIB = 1 << 20


@pytest.fixture
def datastores(tmp_path: Path) -> Datastores:
    tmp_path.joinpath("ds", "vm").mkdir(parents=True)
    stores = Datastores()
    stores.add(LabDatastore("ds", tmp_path / "ds"))
    return stores


def make_flat(stores: Datastores, capacity: int = 4 * MIB) -> DatastorePath:
    path = DatastorePath.parse("[ds] vm/vm.vmdk")
    descriptor = flat_descriptor("vm", capacity)
    stores.write_text(path, descriptor.text())
    stores.files_of(path).create("vm/vm-flat.vmdk", capacity)
    return path


def make_delta(stores: Datastores, parent: DatastorePath, name: str) -> DatastorePath:
    path = parent.sibling(f"{name}.vmdk")
    descriptor = delta_descriptor(path, read_disk_file(stores, parent))
    stores.write_text(path, descriptor.text())
    stores.files_of(path).replace(
        f"vm/{descriptor.extent_name}", empty_image(descriptor.capacity_bytes)
    )
    return path


def test_a_descriptor_survives_printing_and_parsing() -> None:
    """And carries what VMware's own says: uuid in two spaced halves, extent, content id."""
    descriptor = flat_descriptor("vm", 5 * MIB)
    text = descriptor.text()
    assert parse_descriptor(text, "vm.vmdk") == descriptor
    assert 'RW 10240 VMFS "vm-flat.vmdk"' in text
    assert f'ddb.uuid = "{spaced_uuid(descriptor.uuid)}"' in text
    assert spaced_uuid(descriptor.uuid).startswith("60 00 c2 9")
    assert len(spaced_uuid(descriptor.uuid)) == 47


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "CID=1\n",
        'CID=1\nRW 8 VMFS "../x"\n',
        'CID=1\nRW 8 VMFS "a"\nRW 8 VMFS "b"\n',
        'CID=1\nRW 8 VMFSRDM "a"\n',
        'CID=1\nRW 0 VMFS "a"\n',
        'CID=1\nRW 8 SESPARSE "a"\n',
    ],
)
def test_a_descriptor_that_is_none_is_refused(broken: str) -> None:
    """With FileFault, whatever it says."""
    with pytest.raises(FileFaultError):
        parse_descriptor(broken, "x.vmdk")


def test_an_extent_must_have_the_size_its_descriptor_says(datastores: Datastores) -> None:
    """As a host refuses to open such a disk."""
    path = make_flat(datastores)
    datastores.files_of(path).resize("vm/vm-flat.vmdk", 3 * MIB)
    with pytest.raises(FileFaultError, match="bytes"):
        read_disk_file(datastores, path)


def test_a_chain_shows_the_newest_cluster_of_each_place(
    datastores: Datastores, tmp_path: Path
) -> None:
    """Data written by QEMU into two deltas is read through them, zeros too."""
    needs("qemu-io")
    base = make_flat(datastores)
    datastores.files_of(base).write_at("vm/vm-flat.vmdk", 0, b"\1" * (2 * MIB))
    first = make_delta(datastores, base, "vm-000001")
    second = make_delta(datastores, first, "vm-000002")
    folder = tmp_path / "ds" / "vm"
    chain = open_chain(datastores, second)
    assert [disk.path.name for disk in chain.files] == [
        "vm-000002.vmdk",
        "vm-000001.vmdk",
        "vm.vmdk",
    ]

    def write(name: str, command: str, backing: str) -> None:
        options = f"driver=qcow2,file.filename={name},{backing}"
        arguments = ["qemu-io", "-c", command, "--image-opts", options]
        subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    low = "backing.driver=raw,backing.file.filename=vm-flat.vmdk"
    write("vm-000001-delta.vmdk", "write -P 2 100k 4k", low)
    write(
        "vm-000002-delta.vmdk",
        "write -z 1M 64k",
        "backing.driver=qcow2,backing.file.filename=vm-000001-delta.vmdk,"
        + low.replace("backing.", "backing.backing."),
    )
    content = ChainReader(datastores, open_chain(datastores, second)).read_at(0, 4 * MIB)
    expected = bytearray(b"\1" * (2 * MIB) + bytes(2 * MIB))
    expected[100 * 1024 : 104 * 1024] = b"\2" * 4096
    expected[MIB : MIB + CLUSTER_BYTES] = bytes(CLUSTER_BYTES)
    assert content == expected
    reader = ChainReader(datastores, open_chain(datastores, second))
    assert reader.read_at(100 * 1024 - 3, 7) == b"\1\1\1\2\2\2\2"
    with pytest.raises(FileFaultError):
        reader.read_at(4 * MIB - 1, 2)


def test_a_parent_that_changed_its_content_id_breaks_the_chain(datastores: Datastores) -> None:
    """Nothing is read through a child of something else."""
    base = make_flat(datastores)
    leaf = make_delta(datastores, base, "vm-000001")
    text = datastores.read_text(base, 1 << 16)
    content_id = read_disk_file(datastores, base).descriptor.content_id
    datastores.write_text(base, text.replace(f"CID={content_id}", "CID=00000001", 1))
    with pytest.raises(FileFaultError, match="modified since"):
        open_chain(datastores, leaf)


def test_areas_join_round_and_clip() -> None:
    """Sorted and disjoint, whatever went in."""
    assert merged([(8, 2), (0, 4), (4, 1), (3, 2), (20, 0)]) == [(0, 5), (8, 2)]
    assert rounded([(1, 1), (100, 50)], 64, 140) == [(0, 140)]
    assert clipped([(0, 10), (20, 10)], 5, 25) == [(5, 5), (20, 5)]


def test_changed_areas_are_those_of_the_epochs_between_two_ids() -> None:
    """Nothing before the first id, nothing after the snapshot."""
    tracking = new_tracking(100 * MIB).closed_epoch([(0, 10)])
    first = tracking.change_id
    tracking = tracking.written([(MIB, 1)]).closed_epoch([(2 * MIB, 70000)])
    second = tracking.change_id
    tracking = tracking.written([(3 * MIB, 1)])
    assert tracking.changed(first, second) == [(MIB, 65536), (2 * MIB, 131072)]
    assert tracking.changed(second, second) == []
    assert tracking.changed(second, None) == [(3 * MIB, 65536)]
    assert decode_tracking(tracking.encode()) == tracking
    assert ChangeId.parse(str(second)) == second


def test_an_id_of_other_tracking_is_refused() -> None:
    """After a reset every changeId of before gets FileFault; nonsense is InvalidArgument."""
    old = new_tracking(100 * MIB).closed_epoch([])
    new = new_tracking(100 * MIB).closed_epoch([])
    with pytest.raises(FileFaultError):
        new.changed(old.change_id, new.change_id)
    with pytest.raises(FileFaultError):
        new.changed(ChangeId(tracking_id=new.tracking_id, number=2), new.change_id)
    for text in ("", "1", "52/1", str(old.change_id)[:-1], str(old.change_id) + "x"):
        with pytest.raises(InvalidArgumentError):
            ChangeId.parse(text)
    with pytest.raises(FileFaultError):
        decode_tracking(b"{}")


def test_blocks_grow_with_disks_of_more_than_128_gib() -> None:
    """64 KiB to 128 GiB, then twice as much with each doubling."""
    gib = 1 << 30
    assert [block_bytes(size * gib) // 1024 for size in (1, 128, 129, 256, 257, 1024)] == [
        *(64, 64, 128, 128, 256, 512)
    ]
