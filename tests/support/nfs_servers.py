"""An NFS server in a thread, for tests: what it serves, and where; any complaint fails the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from appliance.exports.nfs import NfsServer, PortmapMode, nfs_export
from nfs_server.limits import Limits
from nfs_server.vfs import Tree
from tests.support.complaints import complaints

KEY = b"key of the tests, of 32 bytes   "
PATH = "/holdfast/test"


@contextmanager
def nfs_serving(
    tree: Tree,
    *,
    clients: Sequence[str] = ("127.0.0.1",),
    limits: Limits | None = None,
    port: int = 0,
) -> Iterator[NfsServer]:
    server = NfsServer(
        key=KEY, host="127.0.0.1", port=port, portmap_mode=PortmapMode.NONE, limits=limits
    )
    server.publish(nfs_export(PATH, 7, tree, clients))
    with complaints(), server:
        yield server
