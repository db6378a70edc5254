"""Making and removing the files of delta disks. Thread model: any thread; nothing is locked."""

from __future__ import annotations

import re
from dataclasses import replace

from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.qcow2 import empty_image
from lab.esx.vmdk import DiskFile, delta_descriptor, read_disk_file

_DELTA_NAME = re.compile(r"(.*)-\d{6}\.vmdk")
_NUMBERS = range(1, 1_000_000)


def next_delta_path(datastores: Datastores, leaf: DatastorePath) -> DatastorePath:
    """The first free `NAME-00000N.vmdk` beside the leaf."""
    match = _DELTA_NAME.fullmatch(leaf.name)
    stem = match[1] if match else leaf.name.removesuffix(".vmdk")
    for number in _NUMBERS:
        path = leaf.sibling(f"{stem}-{number:06d}.vmdk")
        if not datastores.exists(path):
            return path
    raise AssertionError("a folder with a million snapshots")


def make_delta(datastores: Datastores, path: DatastorePath, parent: DiskFile) -> DiskFile:
    """Create an empty delta over `parent`; nothing is left when it fails."""
    delta = DiskFile(path=path, descriptor=delta_descriptor(path, parent))
    extent = delta.extent_path
    image = empty_image(delta.descriptor.capacity_bytes)
    try:
        datastores.files_of(extent).replace(extent.path, image)
        datastores.write_text(path, delta.descriptor.text())
    except BaseException:
        remove_disk_files(datastores, delta)
        raise
    return delta


def remove_disk_files(datastores: Datastores, disk: DiskFile) -> None:
    """The descriptor goes first, so that nothing names an extent that is gone."""
    for path in disk.own_files:
        datastores.delete_if_there(path)


def adopt(datastores: Datastores, child: DatastorePath, parent: DatastorePath) -> None:
    """Rewrite the child's descriptor to stand over another parent of equal content."""
    grandchild = read_disk_file(datastores, child)
    below = read_disk_file(datastores, parent)
    near = parent.folder == child.folder
    descriptor = replace(
        grandchild.descriptor,
        parent_hint=parent.name if near else str(parent),
        parent_content_id=below.descriptor.content_id,
    )
    datastores.write_text(child, descriptor.text())
