"""Random file operations over the wire against a model in memory, with restarts in the middle."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from appliance.exports.datastore.tree import SessionTree
from tests.support import nfs_procedures as nfs
from tests.support.nfs_procedures import NfsProcedures, changes
from tests.support.nfs_servers import PATH, nfs_serving

REGULAR, DIRECTORY, SYMLINK = 1, 2, 5
MOST_FILES = 12
names = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe", b"n" * 255])
picks = st.integers(0, 1000)


@dataclass(eq=False)
class Model:
    kind: int
    handle: bytes = b""
    fileid: int = 0
    content: bytearray = field(default_factory=bytearray)
    text: bytes = b""
    verifier: bytes = b""
    names: int = 0  # of what is no folder
    entries: dict[bytes, Model] = field(default_factory=dict)
    parent: Model | None = None
    gone: bool = False

    @property
    def links(self) -> int:
        if self.kind != DIRECTORY:
            return self.names
        return 2 + sum(each.kind == DIRECTORY for each in self.entries.values())

    def holds(self, other: Model) -> bool:
        here: Model | None = other
        while here is not None:
            if here is self:
                return True
            here = here.parent
        return False


class FileOperations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="holdfast-nfs-model-")
        self.root = Model(DIRECTORY)
        self.files: list[Model] = [self.root]
        self._start()

    def _start(self) -> None:
        self.tree = SessionTree(Path(self.folder.name), {})
        self.serving = nfs_serving(self.tree)
        server = self.serving.__enter__()
        self.client = NfsProcedures(server.port)

    def _stop(self) -> None:
        self.client.close()
        self.serving.__exit__(None, None, None)
        self.tree.close()

    def teardown(self) -> None:
        self._stop()
        self.folder.cleanup()

    @initialize()
    def mount(self) -> None:
        self.root.handle = self.client.mount(PATH)

    # choosing

    def any(self, pick: int) -> Model:
        return self.files[pick % len(self.files)]

    def any_folder(self, pick: int) -> Model:
        folders = [each for each in self.files if each.kind == DIRECTORY]
        return folders[pick % len(folders)]

    def expect_gone_or(self, status: int, *involved: Model) -> int:
        """What a call must answer: STALE when a file of it is gone."""
        return nfs.STALE if any(each.gone for each in involved) else status

    def add(self, folder: Model, name: bytes, made: nfs.Reply, model: Model) -> None:
        assert made.attributes is not None
        assert made.attributes["type"] == model.kind
        model.handle, model.fileid = made.handle, made.attributes["fileid"]
        assert model.fileid not in {each.fileid for each in self.files}
        model.names = 1
        model.parent = folder
        folder.entries[name] = model
        self.files.append(model)

    def drop(self, model: Model) -> None:
        model.names -= 1
        if model.kind == DIRECTORY or not model.names:
            model.gone = True

    # changing

    @precondition(lambda self: len(self.files) < MOST_FILES)
    @rule(folder=picks, name=names, how=st.integers(0, 2), size=st.none() | st.integers(0, 3000))
    def create(self, folder: int, name: bytes, how: int, size: int | None) -> None:
        into = self.any_folder(folder)
        there = into.entries.get(name)
        verifier = b"%08d" % ((size or 0) % 3) if how == 2 else b""
        words = verifier if how == 2 else changes(size=size)
        reply = self.client.make(into.handle, name, how, words)
        if into.gone or there is None:
            assert reply.status == self.expect_gone_or(nfs.OK, into)
            if reply.status == nfs.OK:
                made = Model(REGULAR, verifier=verifier)
                made.content = bytearray(0 if how == 2 else size or 0)
                self.add(into, name, reply, made)
        elif how == 0 and there.kind == REGULAR:
            assert (reply.status, reply.handle) == (nfs.OK, there.handle)
            if size is not None:
                self.resize(there, size)
        elif how == 2 and there.kind == REGULAR and there.verifier == verifier:
            assert (reply.status, reply.handle) == (nfs.OK, there.handle)
        else:
            assert reply.status == nfs.EXIST

    @precondition(lambda self: len(self.files) < MOST_FILES)
    @rule(
        folder=picks,
        name=names,
        kind=st.sampled_from([DIRECTORY, SYMLINK]),
        text=st.binary(min_size=1, max_size=50),
    )
    def make_other(self, folder: int, name: bytes, kind: int, text: bytes) -> None:
        into = self.any_folder(folder)
        text = text.replace(b"\0", b"0")
        if kind == DIRECTORY:
            reply = self.client.mkdir(into.handle, name)
        else:
            reply = self.client.symlink(into.handle, name, text)
        expected = nfs.EXIST if name in into.entries else nfs.OK
        assert reply.status == self.expect_gone_or(expected, into)
        if reply.status == nfs.OK:
            self.add(into, name, reply, Model(kind, text=text if kind == SYMLINK else b""))

    @rule(file=picks, folder=picks, name=names)
    def link(self, file: int, folder: int, name: bytes) -> None:
        linked, into = self.any(file), self.any_folder(folder)
        reply = self.client.link(linked.handle, into.handle, name)
        if linked.gone or into.gone:
            assert reply.status == nfs.STALE
        elif linked.kind == DIRECTORY:
            assert reply.status == nfs.ISDIR
        elif name in into.entries:
            assert reply.status == nfs.EXIST
        else:
            assert reply.status == nfs.OK
            into.entries[name] = linked
            linked.names += 1

    @rule(folder=picks, name=names, as_folder=st.booleans())
    def remove(self, folder: int, name: bytes, as_folder: bool) -> None:
        of = self.any_folder(folder)
        there = of.entries.get(name)
        call = self.client.rmdir if as_folder else self.client.remove
        if there is None:
            expected = nfs.NOENT
        elif as_folder:
            expected = nfs.NOTDIR if there.kind != DIRECTORY else nfs.OK
            expected = nfs.NOTEMPTY if there.entries else expected
        else:
            expected = nfs.ISDIR if there.kind == DIRECTORY else nfs.OK
        assert call(of.handle, name).status == self.expect_gone_or(expected, of)
        if expected == nfs.OK and not of.gone:
            assert there is not None
            del of.entries[name]
            self.drop(there)

    @rule(folder=picks, name=names, new_folder=picks, new_name=names)
    def rename(self, folder: int, name: bytes, new_folder: int, new_name: bytes) -> None:
        old, new = self.any_folder(folder), self.any_folder(new_folder)
        reply = self.client.rename(old.handle, name, new.handle, new_name)
        if old.gone or new.gone:
            assert reply.status == nfs.STALE
            return
        moved, there = old.entries.get(name), new.entries.get(new_name)
        expected = self._rename_status(moved, there, new)
        assert reply.status == expected
        if expected != nfs.OK or moved is there:
            return
        assert moved is not None
        if there is not None:
            self.drop(there)
        del old.entries[name]
        new.entries[new_name] = moved
        moved.parent = new

    def _rename_status(self, moved: Model | None, there: Model | None, new: Model) -> int:
        if moved is None:
            return nfs.NOENT
        if moved is there:
            return nfs.OK
        if moved.kind == DIRECTORY and moved.holds(new):
            return nfs.INVAL
        if there is None:
            return nfs.OK
        if moved.kind == DIRECTORY and there.kind != DIRECTORY:
            return nfs.NOTDIR
        if there.kind == DIRECTORY and moved.kind != DIRECTORY:
            return nfs.ISDIR
        return nfs.NOTEMPTY if there.entries else nfs.OK

    @rule(
        file=picks,
        offset=st.integers(0, 5000),
        data=st.binary(max_size=600),
        stable=st.integers(0, 2),
    )
    def write(self, file: int, offset: int, data: bytes, stable: int) -> None:
        to = self.any(file)
        expected = {REGULAR: nfs.OK, DIRECTORY: nfs.ISDIR, SYMLINK: nfs.INVAL}[to.kind]
        status = self.client.write_at(to.handle, offset, data, stable).status
        assert status == self.expect_gone_or(expected, to)
        if status == nfs.OK and data:
            to.content += bytes(max(0, offset + len(data) - len(to.content)))
            to.content[offset : offset + len(data)] = data

    @rule(file=picks, size=st.integers(0, 6000))
    def truncate(self, file: int, size: int) -> None:
        to = self.any(file)
        expected = {REGULAR: nfs.OK, DIRECTORY: nfs.ISDIR, SYMLINK: nfs.INVAL}[to.kind]
        status = self.client.setattr(to.handle, changes(size=size)).status
        assert status == self.expect_gone_or(expected, to)
        if status == nfs.OK:
            self.resize(to, size)

    def resize(self, file: Model, size: int) -> None:
        file.content = file.content[:size] + bytes(max(0, size - len(file.content)))

    @rule()
    def restart(self) -> None:
        """Same folder, same key: every handle goes on."""
        self._stop()
        self._start()

    # looking

    @rule(file=picks, offset=st.integers(0, 7000), count=st.integers(0, 7000))
    def read(self, file: int, offset: int, count: int) -> None:
        of = self.any(file)
        reply = self.client.read_at(of.handle, offset, count)
        expected = {REGULAR: nfs.OK, DIRECTORY: nfs.ISDIR, SYMLINK: nfs.INVAL}[of.kind]
        assert reply.status == self.expect_gone_or(expected, of)
        if reply.status == nfs.OK:
            assert reply.data == of.content[offset : offset + count]
            assert reply.eof == (offset + len(reply.data) >= len(of.content))

    @rule(folder=picks, count=st.sampled_from([600, 1000, 8192]))
    def list(self, folder: int, count: int) -> None:
        of = self.any_folder(folder)
        if of.gone:
            assert self.client.readdir(of.handle).status == nfs.STALE
            return
        assert sorted(self.client.names(of.handle, count)) == sorted(of.entries)
        for name, model in of.entries.items():
            assert self.client.find(of.handle, name).handle == model.handle

    @invariant()
    def every_handle_leads_to_its_file(self) -> None:
        for model in self.files:
            if not model.handle:
                continue
            reply = self.client.getattr(model.handle)
            assert reply.status == self.expect_gone_or(nfs.OK, model)
            if model.gone:
                continue
            found = reply.attributes
            assert found is not None
            assert (found["type"], found["nlink"]) == (model.kind, model.links)
            if model.kind == REGULAR:
                assert found["size"] == len(model.content)
            if model.kind == SYMLINK:
                assert self.client.readlink(model.handle).data == model.text
            if model.kind == DIRECTORY:
                parent = model.parent or self.root
                assert self.client.find(model.handle, b"..").handle == parent.handle


TestFileOperations = FileOperations.TestCase
TestFileOperations.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
