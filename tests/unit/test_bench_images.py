"""The later state of a bench disk holds what the later tree holds, and leaves the rest in place."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.perf import image_stage
from tests.support.needs import needs

SIZE_BYTES = 160 << 20
UUID = "6f3c1e0a-0000-4000-8000-000000000001"


def dump(disk: Path, target: Path) -> Path:
    """Take the tree out of a disk."""
    target.mkdir()
    offset = image_stage.PARTITION_BYTES
    command = ["debugfs", "-R", f"rdump / {target}", f"{disk}?offset={offset}"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    shutil.rmtree(target / "lost+found")
    return target


def content(tree: Path) -> dict[str, bytes | str | None]:
    found: dict[str, bytes | str | None] = {}
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@pytest.mark.integration
def test_the_later_disk_has_the_later_tree_and_untouched_files_stay(tmp_path: Path) -> None:
    """Files that came, went, changed or became something else are right; the file system is sound;
    an untouched file keeps its disk addresses; rewritten pages are rewritten where they were."""
    needs("debugfs", "mke2fs", "sfdisk", "e2fsck")
    tree = tmp_path / "tree"
    for folder in ("var/log", "etc/gone/deep", "etc/turns"):
        (tree / folder).mkdir(parents=True)
    kept = random.Random(1).randbytes(3 << 20)
    (tree / "kept").write_bytes(kept)
    (tree / "etc/gone/deep/file").write_text("gone")
    (tree / "etc/changed").write_text("before")
    (tree / "etc/turns/file").write_text("a folder that becomes a link")
    (tree / "etc/link").symlink_to("changed")
    work = tmp_path / "work"
    work.mkdir()
    (work / "disk").write_text(f"web {SIZE_BYTES} {UUID}")
    image_stage.first(tree, work)
    assert content(dump(work / "web.raw", tmp_path / "first")) == content(tree)

    shutil.rmtree(tree / "etc/gone")
    shutil.rmtree(tree / "etc/turns")
    (tree / "etc/turns").symlink_to("changed")
    (tree / "etc/changed").write_text("after, and longer")
    (tree / "etc/link").unlink()
    (tree / "etc/link").symlink_to("/kept")
    (tree / "new folder").mkdir()
    (tree / "new folder/new file").write_bytes(os.urandom(100_000))
    image_stage.second(tree, work)

    later = content(dump(work / "web-later.raw", tmp_path / "second"))
    expected = content(tree)
    pages = later.pop(image_stage.DATABASE), expected.pop(image_stage.DATABASE)
    assert later == expected
    assert rewritten(*pages) == image_stage.REWRITTEN_PAGES
    check = ["e2fsck", "-fn", f"{work / 'web-later.raw'}?offset={image_stage.PARTITION_BYTES}"]
    assert subprocess.run(check, capture_output=True, timeout=60, check=False).returncode == 0
    first, second = (work / "web.raw").read_bytes(), (work / "web-later.raw").read_bytes()
    assert first.find(kept) == second.find(kept) > 0


def rewritten(left: object, right: object) -> int:
    assert isinstance(left, bytes)
    assert isinstance(right, bytes)
    assert len(left) == len(right)
    size = image_stage.PAGE_BYTES
    starts = range(0, len(left), size)
    return sum(left[start : start + size] != right[start : start + size] for start in starts)
