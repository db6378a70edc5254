"""The conformance suite of `nfs_server.vfs.Tree`. To run it, in a `test_*.py` here:

class TestMyTree(NfsTreeSuite):
    @pytest.fixture
    def tree(self, tmp_path):
        return my_empty_tree(tmp_path)
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from nfs_server.errors import VfsError
from nfs_server.protocol import FileType, Status
from nfs_server.vfs import AttributeChanges, ServerTime, Tree

PLAIN = AttributeChanges()


def refused(status: Status, *others: Status) -> pytest.RaisesExc[VfsError]:
    return pytest.RaisesExc(VfsError, check=lambda error: error.status in (status, *others))


class NfsTreeSuite:
    @pytest.fixture
    def tree(self) -> Tree:
        raise NotImplementedError  # each implementation overrides this fixture

    def test_the_root_is_its_own_parent_and_empty(self, tree: Tree) -> None:
        """Everything starts at a folder."""
        assert tree.attributes(tree.root).type is FileType.DIRECTORY
        assert tree.parent(tree.root) == tree.root
        assert list(tree.list(tree.root, 0, 10)) == []

    def test_a_file_holds_what_is_written_where_it_is_written(self, tree: Tree) -> None:
        """Content follows a bytearray through random writes, resizes and reads."""
        rng = random.Random(5)
        file = tree.create(tree.root, b"file", PLAIN)
        model = bytearray()
        for _ in range(200):
            if rng.random() < 0.2:
                size = rng.randrange(20_000)
                tree.set_attributes(file, AttributeChanges(size_bytes=size))
                model = model[:size] + bytes(max(0, size - len(model)))
            else:
                offset, data = rng.randrange(15_000), rng.randbytes(rng.randrange(1, 3000))
                tree.write(file, offset, data)
                model += bytes(max(0, offset + len(data) - len(model)))
                model[offset : offset + len(data)] = data
            assert tree.attributes(file).size_bytes == len(model)
            offset, length = rng.randrange(len(model) + 1), rng.randrange(4000)
            assert bytes(tree.read(file, offset, length)) == model[offset : offset + length]
        tree.sync(file)

    def test_try_read_is_what_read_is_or_nothing(self, tree: Tree) -> None:
        """The quick way never gives other bytes."""
        file = tree.create(tree.root, b"file", PLAIN)
        tree.write(file, 0, b"0123456789")
        tree.read(file, 0, 10)
        found = tree.try_read(file, 3, 4)
        assert found is None or bytes(found) == b"3456"

    def test_names_are_found_until_they_are_removed(self, tree: Tree) -> None:
        """A removed file's number is stale, its name free."""
        file = tree.create(tree.root, b"a", PLAIN)
        assert tree.lookup(tree.root, b"a") == file
        with refused(Status.EXIST):
            tree.create(tree.root, b"a", PLAIN)
        tree.remove(tree.root, b"a")
        with refused(Status.NOENT):
            tree.lookup(tree.root, b"a")
        with refused(Status.STALE):
            tree.attributes(file)
        with refused(Status.NOENT):
            tree.remove(tree.root, b"a")

    def test_an_exclusive_create_may_be_repeated_by_its_client_only(self, tree: Tree) -> None:
        """The same verifier gives the same file, another one EXIST."""
        first = tree.create(tree.root, b"lock", PLAIN, exclusive=b"12345678")
        assert tree.create(tree.root, b"lock", PLAIN, exclusive=b"12345678") == first
        with refused(Status.EXIST):
            tree.create(tree.root, b"lock", PLAIN, exclusive=b"87654321")
        with refused(Status.EXIST):
            tree.create(tree.root, b"lock", PLAIN)

    def test_of_many_exclusive_creates_one_wins(self, tree: Tree) -> None:
        """A lock file made by several hosts at once belongs to one of them."""

        def take(number: int) -> bool:
            try:
                tree.create(tree.root, b"lock", PLAIN, exclusive=number.to_bytes(8, "big"))
            except VfsError as error:
                assert error.status is Status.EXIST
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take, range(24))) == 1

    def test_a_rename_replaces_a_file_and_keeps_the_number(self, tree: Tree) -> None:
        """The moved file keeps its number and content; the replaced one is stale."""
        old, new = tree.create(tree.root, b"old", PLAIN), tree.create(tree.root, b"new", PLAIN)
        tree.write(old, 0, b"content")
        tree.rename(tree.root, b"old", tree.root, b"new")
        assert tree.lookup(tree.root, b"new") == old
        assert bytes(tree.read(old, 0, 7)) == b"content"
        with refused(Status.STALE):
            tree.attributes(new)
        with refused(Status.NOENT):
            tree.rename(tree.root, b"old", tree.root, b"other")
        tree.rename(tree.root, b"new", tree.root, b"new")
        assert tree.lookup(tree.root, b"new") == old

    def test_folders_replace_only_empty_folders(self, tree: Tree) -> None:
        """RFC 1813 section 3.3.14: like replaces like, and nothing with entries is lost."""
        one = tree.make_folder(tree.root, b"one", PLAIN)
        two = tree.make_folder(tree.root, b"two", PLAIN)
        inside = tree.create(two, b"file", PLAIN)
        with refused(Status.NOTEMPTY, Status.EXIST):
            tree.rename(tree.root, b"one", tree.root, b"two")
        with refused(Status.ISDIR, Status.EXIST):
            tree.rename(two, b"file", tree.root, b"one")
        with refused(Status.INVAL):
            tree.rename(tree.root, b"two", two, b"inside")
        tree.rename(two, b"file", one, b"file")
        assert tree.lookup(one, b"file") == inside
        tree.rename(tree.root, b"one", tree.root, b"two")
        assert tree.lookup(tree.root, b"two") == one

    def test_folders_are_removed_when_empty_and_only_as_folders(self, tree: Tree) -> None:
        """REMOVE and RMDIR each refuse the other's kind."""
        folder = tree.make_folder(tree.root, b"folder", PLAIN)
        tree.create(folder, b"file", PLAIN)
        assert tree.parent(folder) == tree.root
        with refused(Status.NOTEMPTY, Status.EXIST):
            tree.remove_folder(tree.root, b"folder")
        with refused(Status.ISDIR, Status.PERM):
            tree.remove(tree.root, b"folder")
        with refused(Status.NOTDIR):
            tree.remove_folder(folder, b"file")
        tree.remove(folder, b"file")
        tree.remove_folder(tree.root, b"folder")
        with refused(Status.STALE):
            tree.list(folder, 0, 1)

    def test_what_is_no_folder_holds_no_names(self, tree: Tree) -> None:
        """A file where a folder is due is NOTDIR."""
        file = tree.create(tree.root, b"file", PLAIN)
        for attempt in (
            lambda: tree.lookup(file, b"x"),
            lambda: tree.create(file, b"x", PLAIN),
            lambda: tree.make_folder(file, b"x", PLAIN),
            lambda: tree.list(file, 0, 1),
        ):
            with refused(Status.NOTDIR):
                attempt()

    def test_a_listing_goes_on_where_it_stopped_whatever_came_and_went(self, tree: Tree) -> None:
        """Names that stay are listed exactly once, in pieces of any size, under changes."""
        stay = {f"stay-{number}".encode() for number in range(50)}
        for name in stay:
            tree.create(tree.root, name, PLAIN)
        for number in range(20):
            tree.create(tree.root, f"go-{number}".encode(), PLAIN)
        seen: list[bytes] = []
        after, step = 0, 0
        while entries := tree.list(tree.root, after, 7):
            cookies = [entry.cookie for entry in entries]
            assert cookies == sorted(set(cookies))
            assert cookies[0] > after
            after = cookies[-1]
            seen += [entry.name for entry in entries]
            if step < 20:
                tree.remove(tree.root, f"go-{step}".encode())
                tree.create(tree.root, f"came-{step}".encode(), PLAIN)
                step += 1
        assert sorted(name for name in seen if name in stay) == sorted(stay)

    def test_links_share_the_file(self, tree: Tree) -> None:
        """The file lives until its last name goes."""
        file = tree.create(tree.root, b"one", PLAIN)
        tree.write(file, 0, b"shared")
        tree.link(file, tree.root, b"two")
        assert tree.attributes(file).links == 2
        tree.remove(tree.root, b"one")
        assert tree.lookup(tree.root, b"two") == file
        assert bytes(tree.read(file, 0, 6)) == b"shared"
        tree.remove(tree.root, b"two")
        with refused(Status.STALE):
            tree.attributes(file)

    def test_symbolic_links_are_text(self, tree: Tree) -> None:
        """Nothing is followed here."""
        link = tree.make_symlink(tree.root, b"link", b"../../etc/passwd", PLAIN)
        assert tree.attributes(link).type is FileType.SYMLINK
        assert tree.read_symlink(link) == b"../../etc/passwd"

    def test_every_change_shows_in_the_times(self, tree: Tree) -> None:
        """Clients find out that their caches are old by times that differ."""
        folder = tree.attributes(tree.root)
        file = tree.create(tree.root, b"file", PLAIN)
        assert tree.attributes(tree.root).modified_ns > folder.modified_ns
        before = tree.attributes(file)
        tree.write(file, 0, b"x")
        after = tree.attributes(file)
        assert after.modified_ns > before.modified_ns
        assert after.changed_ns > before.changed_ns
        tree.set_attributes(file, AttributeChanges(mode=0o600, uid=5, gid=6))
        changed = tree.attributes(file)
        assert (changed.mode, changed.uid, changed.gid) == (0o600, 5, 6)
        assert changed.changed_ns > after.changed_ns

    def test_times_are_set_as_asked(self, tree: Tree) -> None:
        """Both times, to a client's or to ours."""
        file = tree.create(tree.root, b"file", PLAIN)
        tree.write(file, 0, b"x")
        tree.set_attributes(file, AttributeChanges(accessed=10**18, modified=2 * 10**18 + 1))
        attributes = tree.attributes(file)
        assert (attributes.accessed_ns, attributes.modified_ns) == (10**18, 2 * 10**18 + 1)
        tree.set_attributes(file, AttributeChanges(modified=ServerTime.NOW))
        assert tree.attributes(file).modified_ns not in (0, 2 * 10**18 + 1)

    def test_space_is_plausible(self, tree: Tree) -> None:
        """A host looks at it before it powers a VM on."""
        space = tree.space()
        assert 0 < space.free_bytes <= space.total_bytes
        assert 0 < space.free_files <= space.total_files
