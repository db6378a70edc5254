"""The image cache: whole images only, built once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lab.guests import GuestKind, build, image_cache


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the tiny builder by one that writes a few bytes and notes that it ran."""
    done: list[Path] = []

    def write(target: Path) -> None:
        target.write_bytes(b"image")
        done.append(target)

    monkeypatch.setitem(image_cache._BUILDERS, GuestKind.TINY, write)
    monkeypatch.setattr(image_cache, "_recipe_hash", lambda kind: "0123")
    return done


def test_an_image_is_built_once_by_many_at_the_same_time(
    tmp_path: Path, builds: list[Path]
) -> None:
    """Whoever comes second waits and takes what the first has built."""
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(build(GuestKind.TINY, cache_folder=tmp_path)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(paths) == {tmp_path / "guest-tiny-0123.raw"}
    assert paths[0].read_bytes() == b"image"
    assert len(builds) == 1


def test_a_failed_build_leaves_no_image(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an image never gets the name under which images are found; the next try succeeds."""

    def fail(target: Path) -> None:
        target.write_bytes(b"ima")
        raise RuntimeError("no space")

    with monkeypatch.context() as patch:
        patch.setitem(image_cache._BUILDERS, GuestKind.TINY, fail)
        with pytest.raises(RuntimeError):
            build(GuestKind.TINY, cache_folder=tmp_path)
    assert not list(tmp_path.glob("guest-*"))
    assert build(GuestKind.TINY, cache_folder=tmp_path).read_bytes() == b"image"
