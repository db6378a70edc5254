"""A session's folder, its process killed at any change of the file system: names and content are
as after the last acknowledged change, or as after the one that was under way."""

from __future__ import annotations

import copy
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.exports.datastore.tree import SessionTree
from nfs_server.protocol import FileType
from nfs_server.vfs import AttributeChanges
from tests.contract.nfs_tree import PLAIN
from tests.support import crash_driver
from tests.support.crash_driver import Ended, Log

MOST = int(os.environ.get("HOLDFAST_CRASH_POINTS", "300"))  # per mode; 0: every one
State = dict[str, tuple[str, int, bytes]]  # path -> kind, mode, content


@dataclass(frozen=True)
class Step:
    """One acknowledged change: on the tree, and on what the tree should hold."""

    act: Callable[[SessionTree], None]
    model: Callable[[State], None]
    touches: str = ""  # a file whose content is undefined while the step runs


def number(tree: SessionTree, path: str) -> int:
    found = tree.root
    for name in filter(None, path.split("/")):
        found = tree.lookup(found, name.encode())
    return found


def split(tree: SessionTree, path: str) -> tuple[int, bytes]:
    folder, _, name = path.rpartition("/")
    return number(tree, folder), name.encode()


def make(path: str, *, exclusive: bytes | None = None) -> Step:
    def act(tree: SessionTree) -> None:
        tree.create(*split(tree, path), AttributeChanges(mode=0o644), exclusive=exclusive)

    return Step(act, lambda state: state.update({path: ("file", 0o644, b"")}))


def write(path: str, offset: int, data: bytes) -> Step:
    def act(tree: SessionTree) -> None:
        file = number(tree, path)
        tree.write(file, offset, data)
        tree.sync(file)

    def model(state: State) -> None:
        kind, mode, old = state[path]
        new = bytearray(old.ljust(offset, b"\0"))
        new[offset : offset + len(data)] = data
        state[path] = (kind, mode, bytes(new))

    return Step(act, model, touches=path)


def resize(path: str, size: int) -> Step:
    def act(tree: SessionTree) -> None:
        tree.set_attributes(number(tree, path), AttributeChanges(size_bytes=size))

    def model(state: State) -> None:
        kind, mode, old = state[path]
        state[path] = (kind, mode, old[:size].ljust(size, b"\0"))

    return Step(act, model, touches=path)


def chmod(path: str, mode: int) -> Step:
    def act(tree: SessionTree) -> None:
        changes = AttributeChanges(mode=mode, modified=10**18)
        tree.set_attributes(number(tree, path), changes)

    return Step(act, lambda state: state.update({path: (state[path][0], mode, state[path][2])}))


def rename(old: str, new: str) -> Step:
    def act(tree: SessionTree) -> None:
        tree.rename(*split(tree, old), *split(tree, new))

    return Step(act, lambda state: state.update({new: state.pop(old)}))


def remove(path: str) -> Step:
    return Step(
        lambda tree: tree.remove(*split(tree, path)), lambda state: state.pop(path) and None
    )


def folder(path: str) -> Step:
    def act(tree: SessionTree) -> None:
        tree.make_folder(*split(tree, path), AttributeChanges(mode=0o755))

    return Step(act, lambda state: state.update({path: ("folder", 0o755, b"")}))


def symlink(path: str) -> Step:
    def act(tree: SessionTree) -> None:
        tree.make_symlink(*split(tree, path), b"text", PLAIN)

    return Step(act, lambda state: state.update({path: ("link", 0o777, b"text")}))


STEPS = [
    *(folder("vm"), make("vm/vm.vmx"), write("vm/vm.vmx", 0, b"config" * 50)),
    *(make("vm/.lck-1", exclusive=b"verifier"), write("vm/.lck-1", 0, b"owner" * 10)),
    *(make("vm/vm.vmx~"), write("vm/vm.vmx~", 0, b"newer" * 80), rename("vm/vm.vmx~", "vm/vm.vmx")),
    *(make("vm/vmware.log"), write("vm/vmware.log", 0, b"line\n" * 100)),
    *(write("vm/vmware.log", 500, b"more\n" * 1000), resize("vm/vmware.log", 300)),
    *(make("vm/vm.vswp"), resize("vm/vm.vswp", 1 << 20), chmod("vm/vm.vmx", 0o600)),
    *(symlink("vm/link"), rename("vm/vmware.log", "vmware-1.log"), write("vmware-1.log", 9, b"x")),
    *(remove("vm/.lck-1"), remove("vm/vm.vswp"), make("vm/.lck-1"), write("vm/.lck-1", 0, b"new")),
]


def state_after(steps: int) -> State:
    state: State = {}
    for step in STEPS[:steps]:
        step.model(state)
    return state


def scenario(path: Path, log: Log) -> None:
    path.mkdir(exist_ok=True)
    tree = SessionTree(path / "tree", {})
    log("opened")
    for index, step in enumerate(STEPS):
        step.act(tree)
        log(f"done {index + 1}")
    tree.close()


def found_in(tree: SessionTree) -> State:
    state: State = {}

    def walk(prefix: str, inside: int) -> None:
        for entry in tree.list(inside, 0, 1000):
            attributes = tree.attributes(entry.number)
            path = prefix + entry.name.decode()
            if attributes.type is FileType.DIRECTORY:
                state[path] = ("folder", attributes.mode, b"")
                walk(path + "/", entry.number)
            elif attributes.type is FileType.SYMLINK:
                state[path] = ("link", attributes.mode, tree.read_symlink(entry.number))
            else:
                content = bytes(tree.read(entry.number, 0, attributes.size_bytes))
                assert len(content) == attributes.size_bytes
                state[path] = ("file", attributes.mode, content)

    walk("", tree.root)
    return state


def without(state: State, path: str) -> State:
    """With the content of `path` forgotten."""
    known = copy.copy(state)
    if path in known:
        known[path] = (*known[path][:2], b"")
    return known


@pytest.fixture
def root() -> Iterator[Path]:
    """In memory where there is room: thousands of fsyncs."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base, prefix="holdfast-tree-crash-") as name:
        yield Path(name)


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power cut"])
def test_killed_at_any_call_the_folder_is_as_acknowledged(root: Path, power_cut: bool) -> None:
    """No change that had returned is missing, none is half, and the folder goes on."""
    seed = int(os.environ.get("HOLDFAST_SEED", "0")) or random.randrange(1 << 32)
    (root / "count").mkdir()
    calls = crash_driver.run(scenario, root / "count").calls
    every = range(1, calls + 1)
    chosen = list(every) if not MOST else random.Random(seed).sample(every, min(MOST, calls))
    print(f"seed {seed}: {len(chosen)} of {calls} calls")
    assert calls > len(STEPS)
    for kill_at in sorted(chosen):
        run = root / "run"
        run.mkdir()
        ended = crash_driver.run(
            scenario, run, kill_at=kill_at, power_cut_seed=seed + kill_at if power_cut else None
        )
        try:
            assert_sound(run / "r", ended)
        except BaseException:
            print(f"seed {seed}, killed at call {kill_at}, after {ended.events}")
            raise
        shutil.rmtree(run)


def assert_sound(path: Path, ended: Ended) -> None:
    acknowledged = sum(event.startswith("done") for event in ended.events)
    if not (path / "tree").exists():
        assert not ended.events
        return
    tree = SessionTree(path / "tree", {})
    found = found_in(tree)
    before, after = state_after(acknowledged), state_after(acknowledged + 1)
    under_way = STEPS[acknowledged].touches if acknowledged < len(STEPS) else ""
    assert without(found, under_way) in (without(before, under_way), without(after, under_way))
    if under_way:
        sizes = {len(each[under_way][2]) for each in (before, after)}
        assert min(sizes) <= len(found[under_way][2]) <= max(sizes)
    names = {entry.name for entry in (path / "tree" / "files").iterdir()}
    numbers = {str(each) for each in tree._names.nodes}
    assert names <= numbers, "content without a name is left"
    file = tree.create(tree.root, b"goes on", PLAIN)
    tree.write(file, 0, b"x")
    tree.sync(file)
    tree.close()
