"""Every procedure over the wire: what RFC 1813 says of results, failures and attributes.

The clients decode every reply to its last byte, failures too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.exports.datastore.tree import SessionTree
from tests.support import nfs_procedures as nfs
from tests.support.memory_device import MemoryDevice
from tests.support.nfs_client import NO_CHANGES, RpcRefused, opaque, u32, u64
from tests.support.nfs_procedures import NfsProcedures, changes
from tests.support.nfs_servers import PATH, nfs_serving

DISK = random.Random(3).randbytes(300_000)
DIRECTORY, SYMLINK = 2, 5


@pytest.fixture
def client(tmp_path: Path) -> Iterator[NfsProcedures]:
    tree = SessionTree(tmp_path / "tree", {0: MemoryDevice(DISK)})
    tree.add_disk(tree.root, b"flat", 0)
    with nfs_serving(tree) as server, NfsProcedures(server.port) as connected:
        yield connected
    tree.close()


@pytest.fixture
def root(client: NfsProcedures) -> bytes:
    return client.mount(PATH)


def test_reads_say_where_the_file_ends(client: NfsProcedures, root: bytes) -> None:
    """Exactly what was asked for, fewer bytes only at the end, and eof whenever that is reached,
    also by a request that goes beyond it (ESXi makes no VM otherwise)."""
    flat = client.find(root, b"flat").handle
    for offset, count, length, eof in (
        (0, 100, 100, False),
        (0, len(DISK), len(DISK), True),
        (0, len(DISK) + 5000, len(DISK), True),
        (len(DISK) - 10, 10, 10, True),
        (len(DISK) - 10, 9, 9, False),
        (len(DISK) - 10, 512, 10, True),
        (len(DISK), 10, 0, True),
        (1 << 62, 10, 0, True),
        (5, 0, 0, False),
    ):
        reply = client.read_at(flat, offset, count)
        assert (reply.status, len(reply.data), reply.eof) == (nfs.OK, length, eof)
        assert reply.data == DISK[offset : offset + length]
        assert reply.attributes is not None


def test_large_offsets_make_holes(client: NfsProcedures, root: bytes) -> None:
    """A swap file of a terabyte costs nothing and reads as zeros."""
    file = client.make(root, b"swap").handle
    assert client.setattr(file, changes(size=1 << 40)).status == nfs.OK
    assert client.write_at(file, (1 << 40) - 3, b"end").status == nfs.OK
    assert client.read_at(file, 1 << 39, 4096).data == bytes(4096)
    assert client.read_at(file, (1 << 40) - 5, 100).data == b"\0\0end"
    assert client.write_at(file, 1 << 40, b"x").wcc[0].after is not None
    attributes = client.getattr(file).attributes
    assert attributes is not None
    assert attributes["size"] == (1 << 40) + 1


@pytest.mark.parametrize("stable", [0, 1, 2])
def test_every_write_is_durable_and_shows_before_and_after(
    client: NfsProcedures, root: bytes, stable: int
) -> None:
    """Whatever stability is asked for; WRITE and COMMIT have one verifier."""
    made = client.make(root, b"file")
    reply = client.write_at(made.handle, 10, b"data", stable)
    assert reply.number == 4
    wcc = reply.wcc[0]
    assert wcc.before is not None
    assert wcc.after is not None
    assert made.attributes is not None
    assert wcc.before["ctime"] == made.attributes["ctime"]
    assert (wcc.before["size"], wcc.after["size"]) == (0, 14)
    assert wcc.after["mtime"] > wcc.before["mtime"]
    commit = client.commit(made.handle)
    assert commit.data == reply.data
    assert commit.wcc[0].after == wcc.after == client.getattr(made.handle).attributes


def test_failures_have_the_bodies_of_their_procedures(client: NfsProcedures, root: bytes) -> None:
    """Stale, forged, missing, of the wrong kind: each reply decodes to its last byte."""
    file = client.make(root, b"file").handle
    folder = client.mkdir(root, b"folder").handle
    client.make(folder, b"inside")
    gone = client.make(root, b"gone").handle
    client.remove(root, b"gone")
    forged = bytearray(file)
    forged[15] ^= 1
    for handle, status in ((gone, nfs.STALE), (bytes(forged), nfs.BADHANDLE), (b"", 10001)):
        for reply in (
            client.getattr(handle),
            client.setattr(handle, NO_CHANGES),
            client.find(handle, b"x"),
            client.access(handle, 63),
            client.readlink(handle),
            client.read_at(handle, 0, 10),
            client.write_at(handle, 0, b"x"),
            client.make(handle, b"x"),
            client.make(handle, b"x", 2, bytes(8)),
            client.mkdir(handle, b"x"),
            client.symlink(handle, b"x", b"y"),
            client.mknod(handle, b"x"),
            client.remove(handle, b"x"),
            client.rmdir(handle, b"x"),
            client.rename(handle, b"x", root, b"y"),
            client.rename(root, b"x", handle, b"y"),
            client.link(handle, root, b"x"),
            client.link(file, handle, b"x"),
            client.readdir(handle),
            client.readdirplus(handle),
            client.fsstat(handle),
            client.fsinfo(handle),
            client.pathconf(handle),
            client.commit(handle),
        ):
            assert reply.status == status
    for reply, expected in (
        (client.find(root, b"missing"), nfs.NOENT),
        (client.find(file, b"x"), nfs.NOTDIR),
        (client.make(file, b"x"), nfs.NOTDIR),
        (client.make(root, b"file"), nfs.EXIST),
        (client.make(root, b"folder", 0), nfs.EXIST),
        (client.mkdir(root, b"file"), nfs.EXIST),
        (client.symlink(root, b"file", b"x"), nfs.EXIST),
        (client.link(file, root, b"file"), nfs.EXIST),
        (client.mknod(root, b"pipe"), nfs.NOTSUPP),
        (client.remove(root, b"missing"), nfs.NOENT),
        (client.remove(root, b"folder"), nfs.ISDIR),
        (client.rmdir(root, b"file"), nfs.NOTDIR),
        (client.rmdir(root, b"folder"), nfs.NOTEMPTY),
        (client.rename(root, b"missing", root, b"x"), nfs.NOENT),
        (client.rename(root, b"file", root, b"folder"), nfs.ISDIR),
        (client.rename(root, b"folder", root, b"file"), nfs.NOTDIR),
        (client.rename(root, b"folder", folder, b"x"), nfs.INVAL),
        (client.readdir(file), nfs.NOTDIR),
        (client.readdirplus(file), nfs.NOTDIR),
        (client.readlink(file), nfs.INVAL),
        (client.read_at(root, 0, 10), nfs.ISDIR),
        (client.write_at(root, 0, b"x"), nfs.ISDIR),
        (client.setattr(root, changes(size=0)), nfs.ISDIR),
        (client.write_at(file, (1 << 63) - 1, b"xx"), nfs.FBIG),
        (client.setattr(file, changes(size=1 << 63)), nfs.FBIG),
    ):
        assert reply.status == expected, reply


def test_names_are_checked_wherever_one_is_given(client: NfsProcedures, root: bytes) -> None:
    """RFC 1813 section 3.2: no empty names, dots only to look up, 255 bytes at most."""
    file = client.make(root, b"file").handle
    folder = client.mkdir(root, b"folder").handle
    for name, making, others in (
        (b"", nfs.ACCES, nfs.ACCES),
        (b"a/b", nfs.INVAL, nfs.INVAL),
        (b"a\0b", nfs.INVAL, nfs.INVAL),
        (b"n" * 256, nfs.NAMETOOLONG, nfs.NAMETOOLONG),
        (b".", nfs.EXIST, nfs.INVAL),
    ):
        for reply in (
            client.make(root, name),
            client.mkdir(root, name),
            client.symlink(root, name, b"x"),
            client.link(file, root, name),
        ):
            assert reply.status == making
        for reply in (
            client.remove(root, name),
            client.rmdir(root, name),
            client.rename(root, name, root, b"x"),
            client.rename(root, b"file", root, name),
        ):
            assert reply.status == others
    assert client.rmdir(folder, b"..").status == nfs.EXIST
    assert client.find(folder, b".").handle == folder
    assert client.find(folder, b"..").handle == root
    assert client.find(root, b"..").handle == root
    longest = b"\xff" * 255
    assert client.make(root, longest).status == nfs.OK
    assert longest in client.names(root)


def test_a_guarded_change_happens_only_to_what_the_client_knows(
    client: NfsProcedures, root: bytes
) -> None:
    """Another ctime: NOT_SYNC, and nothing changed."""
    made = client.make(root, b"file")
    assert made.attributes is not None
    ctime = made.attributes["ctime"]
    assert client.setattr(made.handle, changes(mode=0o600), guard_ns=ctime).status == nfs.OK
    refused = client.setattr(made.handle, changes(mode=0o777), guard_ns=ctime)
    assert refused.status == nfs.NOT_SYNC
    attributes = client.getattr(made.handle).attributes
    assert attributes is not None
    assert attributes["mode"] == 0o600


def test_attributes_are_what_was_set(client: NfsProcedures, root: bytes) -> None:
    """All twelve mode bits, owners of 32 bits, times to the nanosecond."""
    file = client.make(root, b"file", 1, changes(mode=0o6751, uid=7)).handle
    attributes = client.getattr(file).attributes
    assert attributes is not None
    assert (attributes["mode"], attributes["uid"], attributes["gid"]) == (0o6751, 7, 0)
    last = (1 << 32) - 1
    for mode in (0o7777, 0o1000, 0):
        words = changes(mode=mode, uid=last, gid=last, atime=1, mtime=last * 10**9 + 999_999_999)
        assert client.setattr(file, words).status == nfs.OK
        attributes = client.getattr(file).attributes
        assert attributes is not None
        assert (attributes["mode"], attributes["uid"], attributes["gid"]) == (mode, last, last)
        assert attributes["atime"] == 1
        assert attributes["mtime"] == last * 10**9 + 999_999_999
    assert client.setattr(file, changes(atime="now", mtime="now")).status == nfs.OK
    attributes = client.getattr(file).attributes
    assert attributes is not None
    assert attributes["mtime"] <= attributes["ctime"]


def test_times_that_cannot_be_are_refused(client: NfsProcedures, root: bytes) -> None:
    """More than a second of nanoseconds would come out as another second, or as none."""
    file = client.make(root, b"file").handle
    bad = u32(0) * 4 + u32(2) + u32((1 << 32) - 1) + u32((1 << 32) - 1) + u32(0)
    assert client.setattr(file, bad).status == nfs.INVAL
    assert client.getattr(file).status == nfs.OK


def test_an_exclusive_create_can_be_repeated_and_is_somebodys(
    client: NfsProcedures, root: bytes
) -> None:
    """The same verifier finds the file it made; another one finds it taken."""
    first = client.make(root, b"lock", 2, b"verifier")
    assert client.make(root, b"lock", 2, b"verifier").handle == first.handle
    assert client.make(root, b"lock", 2, b"another!").status == nfs.EXIST
    assert client.make(root, b"lock", 1).status == nfs.EXIST
    assert client.make(root, b"lock", 0).handle == first.handle


def test_an_unchecked_create_truncates_and_nothing_else(client: NfsProcedures, root: bytes) -> None:
    """A file that is there keeps its mode and owner."""
    file = client.make(root, b"file", 1, changes(mode=0o600)).handle
    client.write_at(file, 0, b"content")
    assert client.make(root, b"file", 0, changes(mode=0o777)).handle == file
    assert client.read_at(file, 0, 10).data == b"content"
    reply = client.make(root, b"file", 0, changes(mode=0o777, size=0))
    assert reply.attributes is not None
    assert (reply.attributes["size"], reply.attributes["mode"]) == (0, 0o600)


def test_links_are_counted(client: NfsProcedures, root: bytes) -> None:
    """Of files by their names, of folders by their subfolders."""

    def links(handle: bytes) -> int:
        attributes = client.getattr(handle).attributes
        assert attributes is not None
        return attributes["nlink"]

    before = links(root)
    one, two = client.mkdir(root, b"one").handle, client.mkdir(root, b"two").handle
    assert (links(root), links(one)) == (before + 2, 2)
    client.mkdir(one, b"inner")
    assert links(one) == 3
    client.rename(one, b"inner", two, b"inner")
    assert (links(one), links(two)) == (2, 3)
    client.rename(root, b"one", two, b"inner")
    assert (links(root), links(two)) == (before + 1, 3)
    client.rmdir(two, b"inner")
    assert (links(two), client.getattr(one).status) == (2, nfs.STALE)
    file = client.make(root, b"file").handle
    for number in range(5):
        assert client.link(file, two, b"%d" % number).attributes is not None
    assert links(file) == 6
    client.rename(two, b"0", two, b"1")  # two names of one file: nothing happens
    assert links(file) == 6
    client.rename(root, b"file", two, b"1")
    assert links(file) == 6
    client.make(root, b"other")
    client.rename(root, b"other", two, b"2")
    assert links(file) == 5
    for name in client.names(two):
        client.remove(two, name)
    assert links(file) == 1
    client.remove(root, b"file")
    assert client.getattr(file).status == nfs.STALE


def test_symbolic_links_are_files_with_a_text(client: NfsProcedures, root: bytes) -> None:
    """Their size is its length; every text up to 4095 bytes that has no NUL is taken."""
    for number, text in enumerate((b"x", b"../../etc/passwd", b"t" * 4095, b"\xff")):
        made = client.symlink(root, b"link-%d" % number, text)
        assert made.attributes is not None
        assert (made.attributes["type"], made.attributes["size"]) == (SYMLINK, len(text))
        assert made.attributes["mode"] == 0o777
        assert client.readlink(made.handle).data == text
        assert client.read_at(made.handle, 0, 10).status == nfs.INVAL
        assert client.setattr(made.handle, changes(size=1)).status == nfs.INVAL
    assert client.symlink(root, b"long", b"t" * 4096).status == nfs.NAMETOOLONG
    assert client.symlink(root, b"empty", b"").status == nfs.INVAL


def test_long_listings_come_in_pages_of_any_size(client: NfsProcedures, root: bytes) -> None:
    """600 names, each once, "." and ".." first, whatever room the client has."""
    folder = client.mkdir(root, b"many").handle
    names = {b"file-%03d" % number + b"x" * (number % 200) for number in range(600)}
    for name in names:
        client.make(folder, name)
    for count in (512, 4096, 65536, (1 << 32) - 1):
        found = client.names(folder, count)
        assert len(found) == len(names)
        assert set(found) == names
    listed: list[nfs.Listed] = []
    while True:
        reply = client.readdirplus(folder, listed[-1].cookie if listed else 0, 4096, 1024)
        listed += reply.listed
        if reply.eof:
            break
    assert [each.name for each in listed[:2]] == [b".", b".."]
    assert listed[1].handle == root
    for each in listed:
        assert each.attributes is not None
        assert each.attributes["fileid"] == each.fileid
        assert client.find(folder, each.name).handle == each.handle


def test_a_listing_without_room_for_an_entry_says_so(client: NfsProcedures, root: bytes) -> None:
    """TOOSMALL, never an empty page that is not the end; a tiny dircount is no obstacle."""
    client.make(root, b"n" * 255)
    for count in (0, 8, 100, 128):
        assert client.readdir(root, 2, count).status == nfs.TOOSMALL
        assert client.readdirplus(root, 2, count).status == nfs.TOOSMALL
    assert client.readdir(root, 1 << 60, 8).status == nfs.TOOSMALL
    reply = client.readdirplus(root, 0, 8192, 0)
    assert [each.name for each in reply.listed] == [b"."]
    assert not reply.eof


def test_figures_are_those_that_hosts_want(client: NfsProcedures, root: bytes) -> None:
    """Sizes of transfers, of files, of names, and free space."""
    info = client.fsinfo(root).figures
    assert info == (1 << 20, 1 << 20, 4096, 1 << 20, 1 << 20, 4096, 65536, (1 << 63) - 1, 0, 1, 27)
    assert client.pathconf(root).figures == (1024, 255, 1, 1, 0, 1)
    total, free, available, files, free_files, _, _ = client.fsstat(root).figures
    assert total >= free == available > 0
    assert files > free_files > 0


def test_root_may_do_everything(client: NfsProcedures, root: bytes) -> None:
    """No root squash: a host could mount, but make no VM."""
    file = client.make(root, b"file", 1, changes(mode=0)).handle
    assert client.access(root, 0x3F).number == 0x1F
    assert client.access(file, 0x3F).number == 0x0D
    client.setattr(file, changes(mode=0o100))
    assert client.access(file, 0x3F).number == 0x2D
    assert client.access(file, 0x01).number == 0x01


def test_a_read_only_export_refuses_changes_and_takes_commit(tmp_path: Path) -> None:
    """ROFS with the right bodies; a COMMIT has nothing to do."""
    tree = SessionTree(tmp_path / "tree", {0: MemoryDevice(DISK)}, read_only=True)
    tree.add_disk(tree.root, b"flat", 0)
    tree._disks = {0: ReadOnly(DISK)}
    with nfs_serving(tree) as server, NfsProcedures(server.port) as client:
        root = client.mount(PATH)
        flat = client.find(root, b"flat").handle
        for reply in (
            client.setattr(flat, changes(mode=0)),
            client.write_at(flat, 0, b"x"),
            client.make(root, b"x"),
            client.make(root, b"flat", 0, changes(size=0)),
            client.mkdir(root, b"x"),
            client.symlink(root, b"x", b"y"),
            client.mknod(root, b"x"),
            client.remove(root, b"flat"),
            client.rmdir(root, b"flat"),
            client.rename(root, b"flat", root, b"x"),
            client.link(flat, root, b"x"),
        ):
            assert reply.status == nfs.ROFS
        assert client.commit(flat).status == nfs.OK
        assert client.access(root, 0x3F).number == 0x03
        assert client.read_at(flat, 0, 1 << 20).data == DISK
    tree.close()


class ReadOnly(MemoryDevice):
    """Has nothing to flush."""

    flush = None  # type: ignore[assignment]


def test_garbage_gets_an_rpc_error_and_the_next_call_an_answer(
    client: NfsProcedures, root: bytes
) -> None:
    """Arguments cut short, with too much, or with numbers that mean nothing."""
    name = opaque(root) + opaque(b"x")
    for procedure, arguments in (
        (1, b""),
        (1, u32(1 << 31)),
        (1, opaque(bytes(68))),
        (1, opaque(root) + b"more"),
        (2, opaque(root) + NO_CHANGES + u32(2)),
        (2, opaque(root) + u32(7)),
        (7, opaque(root) + u64(0) + u32(1 << 30) + u32(0) + u32(1 << 30)),
        (7, opaque(client.make(root, b"f").handle) + u64(0) + u32(1) + u32(3) + opaque(b"x")),
        (8, name + u32(3)),
        (16, opaque(root) + u64(0)),
    ):
        with pytest.raises(RpcRefused, match="accepted 4"):
            client.call(procedure, arguments)
    assert client.getattr(root).status == nfs.OK
