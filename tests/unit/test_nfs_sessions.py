"""Clients that come back, several at once, and exports that go: what happens only once, what waits
for what, and who may see what."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.exports.datastore.tree import SessionTree
from appliance.exports.nfs import NfsServer, PortmapMode, nfs_export
from nfs_server.vfs import Tree
from tests.support import nfs_procedures as nfs
from tests.support.complaints import eventually
from tests.support.gated_device import GatedDevice
from tests.support.nfs_client import MOUNT, NFS, NO_CHANGES, PORTMAP, RpcRefused, opaque, u32, u64
from tests.support.nfs_procedures import NfsProcedures, changes
from tests.support.nfs_servers import KEY, PATH, nfs_serving

DISK = bytes(range(256)) * 4096


@pytest.fixture
def device() -> Iterator[GatedDevice]:
    device = GatedDevice(DISK)
    yield device
    device.open_gates()


@pytest.fixture
def tree(tmp_path: Path, device: GatedDevice) -> Iterator[SessionTree]:
    tree = SessionTree(tmp_path / "tree", {0: device})
    tree.add_disk(tree.root, b"flat", 0)
    yield tree
    tree.close()


@pytest.mark.parametrize("procedure", [8, 9, 10, 12, 13, 14, 15, 2])
def test_a_change_repeated_after_a_reconnect_gets_the_first_reply(
    tree: SessionTree, procedure: int
) -> None:
    """Made, removed or renamed twice would be an error for something that went well."""
    with nfs_serving(tree) as server:
        with NfsProcedures(server.port) as client:
            root = client.mount(PATH)
            file = client.make(root, b"file").handle
            client.mkdir(root, b"folder")
            ctime = (client.getattr(file).attributes or {})["ctime"]
            guard = u32(1) + u32(ctime // 10**9) + u32(ctime % 10**9)
            arguments = {
                2: opaque(file) + changes(mode=0o600) + guard,
                8: opaque(root) + opaque(b"new") + u32(1) + NO_CHANGES,
                9: opaque(root) + opaque(b"new") + NO_CHANGES,
                10: opaque(root) + opaque(b"new") + NO_CHANGES + opaque(b"text"),
                12: opaque(root) + opaque(b"file"),
                13: opaque(root) + opaque(b"folder"),
                14: opaque(root) + opaque(b"file") + opaque(root) + opaque(b"other"),
                15: opaque(file) + opaque(root) + opaque(b"other"),
            }[procedure]
            xid = client.send(NFS, 3, procedure, arguments)
            first = client.receive()[1].data
        with NfsProcedures(server.port) as client:
            client.send(NFS, 3, procedure, arguments, xid=xid)
            assert client.receive()[1].data == first
            client.send(NFS, 3, procedure, arguments, xid=xid + 1)
            assert client.receive()[1].data != first
        assert server.counters.replayed == 1


def test_a_call_in_progress_is_not_begun_again(tree: SessionTree, device: GatedDevice) -> None:
    """A WRITE that comes twice at once is done once; one that comes later is done again."""
    with (
        nfs_serving(tree) as server,
        NfsProcedures(server.port) as first,
        NfsProcedures(server.port) as second,
    ):
        flat = first.find(first.mount(PATH), b"flat").handle
        device.close_gate("write")
        words = opaque(flat) + u64(0) + u32(4) + u32(0) + opaque(b"once")
        xid = first.send(NFS, 3, 7, words)
        device.wait_for("write", 1)
        second.send(NFS, 3, 7, words, xid=xid)
        assert second.getattr(flat).status == nfs.OK  # it was looked at, and dropped
        device.open_gates()
        assert first.receive()[1].u32() == nfs.OK
        assert device.calls("write") == 1
        second.send(NFS, 3, 7, words, xid=xid)
        assert second.receive()[1].u32() == nfs.OK
        assert device.calls("write") == 2


def test_changes_of_a_lost_connection_end_before_those_of_the_next_begin(
    tree: SessionTree, device: GatedDevice
) -> None:
    """A late write must not undo a newer one; what changes nothing is served meanwhile."""
    with nfs_serving(tree) as server:
        with NfsProcedures(server.port) as lost:
            root = lost.mount(PATH)
            flat = lost.find(root, b"flat").handle
            device.close_gate("write")
            lost.send(NFS, 3, 7, opaque(flat) + u64(0) + u32(3) + u32(0) + opaque(b"old"))
            device.wait_for("write", 1)
        with NfsProcedures(server.port) as client:
            newer = opaque(flat) + u64(0) + u32(3) + u32(0) + opaque(b"new")
            xid = client.send(NFS, 3, 7, newer)
            for _ in range(3):  # a heartbeat, and a read, while the disk hangs
                client.send(NFS, 3, 1, opaque(root))
                assert client.receive()[0] != xid
            assert client.read_at(flat, 512, 4).data == DISK[512:516]
            assert client.names(root) == [b"flat"]
            assert device.calls("write") == 1
            device.open_gates()
            assert client.receive()[0] == xid
            assert client.read_at(flat, 0, 3).data == b"new"


def test_names_and_attributes_are_served_while_every_data_worker_is_stuck(
    tree: SessionTree, device: GatedDevice
) -> None:
    """A host gives a datastore up when its heartbeats are not answered."""
    device.close_gate("read")
    with (
        nfs_serving(tree) as server,
        NfsProcedures(server.port) as reader,
        NfsProcedures(server.port) as other,
    ):
        root = reader.mount(PATH)
        flat = reader.find(root, b"flat").handle
        workers = 8
        connections = [reader, *(NfsProcedures(server.port) for _ in range(3))]
        for client in connections:
            for number in range(200):
                client.send(NFS, 3, 6, opaque(flat) + u64(4096 * number % 65536) + u32(4096))
        device.wait_for("read", workers)
        for client in (other, NfsProcedures(server.port)):
            assert client.getattr(root).status == nfs.OK
            assert client.fsstat(root).status == nfs.OK
            assert client.make(root, b"lock").status in (nfs.OK, nfs.EXIST)
            assert b"lock" in client.names(root)
            assert client.mount(PATH) == root
        device.open_gates()
        for client in connections:
            for _ in range(200):
                assert client.receive()[1].u32() == nfs.OK


def test_of_clients_that_change_one_folder_at_once_none_keeps_an_old_cache(
    tree: SessionTree,
) -> None:
    """Attributes from before are shown only when they are from right before: else a client would
    take another one's change for its own and never look."""
    with nfs_serving(tree) as server:
        with NfsProcedures(server.port) as client:
            root = client.mount(PATH)

        def work(number: int) -> list[tuple[int, int]]:
            spans = []
            with NfsProcedures(server.port) as each:
                for step in range(40):
                    reply = each.make(root, b"%d-%d" % (number, step))
                    wcc = reply.wcc[0]
                    assert wcc.after is not None
                    if wcc.before is not None:
                        spans.append((wcc.before["ctime"], wcc.after["ctime"]))
            return spans

        with ThreadPoolExecutor(4) as pool:
            spans = sorted(span for found in pool.map(work, range(4)) for span in found)
        assert len(tree.list(tree.root, 0, 1000)) == 161
        assert all(before < after for before, after in spans)
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))


def test_an_export_is_for_its_clients_on_every_call(tmp_path: Path) -> None:
    """Neither MNT, nor the list, nor a handle that leaked is of use from elsewhere."""
    trees = [SessionTree(tmp_path / name, {}) for name in ("one", "two")]
    server = NfsServer(key=KEY, host="127.0.0.1", port=0, portmap_mode=PortmapMode.NONE)
    server.publish(nfs_export("/one", 1, trees[0], ["127.0.0.1/32"]))
    server.publish(nfs_export("/two", 2, trees[1], ["127.0.0.0/30", "10.0.0.0/8"]))
    with server:
        one, two = (NfsProcedures(server.port, source=f"127.0.0.{n}") for n in (1, 2))
        far = NfsProcedures(server.port, source="127.0.0.9")
        root = one.mount("/one")
        assert two.mount("/two") == one.mount("/two")
        for client, paths in ((one, [b"/one", b"/two"]), (two, [b"/two"]), (far, [])):
            words = client.call(5, program=MOUNT)
            listed = []
            while words.u32():
                listed.append(words.opaque())
                while words.u32():
                    words.opaque()
            assert words.done
            assert listed == paths
        for client in (two, far):
            assert client.call(1, opaque(b"/one"), program=MOUNT).u32() == nfs.ACCES
            assert client.getattr(root).status == nfs.ACCES
            assert client.make(root, b"x").status == nfs.ACCES
        assert one.make(root, b"x").status == nfs.OK
    for tree in trees:
        tree.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (PATH + "/", nfs.OK),
        ("//holdfast//test", nfs.OK),
        (PATH + "/folder", nfs.OK),
        (PATH + "/flat", nfs.NOTDIR),
        (PATH + "/none", nfs.NOENT),
        (PATH + "/..", nfs.INVAL),
        ("/holdfast", nfs.NOENT),
        ("/", nfs.NOENT),
        ("", nfs.NOENT),
        ("\udcff", nfs.NOENT),
    ],
)
def test_paths_lead_to_exports_and_folders_in_them(
    tree: SessionTree, path: str, status: int
) -> None:
    """And to nothing else."""
    with nfs_serving(tree) as server, NfsProcedures(server.port) as client:
        client.mkdir(client.mount(PATH), b"folder")
        raw = path.encode(errors="surrogateescape")
        reply = client.call(1, opaque(raw), program=MOUNT)
        assert reply.u32() == status
        if status == nfs.OK:
            assert len(reply.opaque()) == 40
            assert [reply.u32() for _ in range(3)] == [2, 1, 0]  # AUTH_SYS, AUTH_NONE
        assert reply.done


def test_programs_and_versions_that_are_not_served_are_refused_as_clients_expect(
    tree: SessionTree,
) -> None:
    """Linux tries version 4 first and asks for NFSACL: the one must be a mismatch, the other no
    program, or it mounts nothing."""
    with nfs_serving(tree) as server, NfsProcedures(server.port) as client:
        for program, version, refusal in (
            (NFS, 4, "accepted 2"),
            (NFS, 2, "accepted 2"),
            (MOUNT, 1, "accepted 2"),
            (100227, 3, "accepted 1"),
            (PORTMAP, 2, "accepted 1"),
        ):
            client.send(program, version, 0, b"")
            with pytest.raises(RpcRefused, match=refusal):
                client.receive()
        for program in (NFS, MOUNT):
            client.send(program, 3, 99, b"")
            with pytest.raises(RpcRefused, match="accepted 3"):
                client.receive()
            assert client.call(0, program=program).done


def test_an_export_that_is_withdrawn_is_touched_no_more(
    tree: SessionTree, device: GatedDevice
) -> None:
    """`withdraw` returns when the last running call has ended; then its handles are stale."""
    with nfs_serving(tree) as server, NfsProcedures(server.port) as client:
        flat = client.find(client.mount(PATH), b"flat").handle
        device.close_gate("read")
        client.send(NFS, 3, 6, opaque(flat) + u64(0) + u32(4096))
        device.wait_for("read", 1)
        withdrawing = threading.Thread(target=server.withdraw, args=(PATH,))
        withdrawing.start()
        eventually(lambda: not server.exports)
        assert withdrawing.is_alive()
        device.open_gates()
        withdrawing.join()
        assert client.receive()[1].u32() == nfs.OK
        assert client.getattr(flat).status == nfs.STALE
        assert client.call(1, opaque(PATH.encode()), program=MOUNT).u32() == nfs.NOENT


def test_a_restarted_server_takes_the_handles_of_the_one_before(tmp_path: Path) -> None:
    """Same folder, same key: the same files, without another MNT."""
    handles: list[bytes] = []
    for _ in range(3):
        tree: Tree = SessionTree(tmp_path, {})
        with nfs_serving(tree) as server, NfsProcedures(server.port) as client:
            root = handles[0] if handles else client.mount(PATH)
            handles = handles or [root, client.make(root, b"file").handle]
            assert client.find(root, b"file").handle == handles[1]
            assert client.getattr(handles[1]).status == nfs.OK
        tree.close()  # type: ignore[attr-defined]
