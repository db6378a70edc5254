"""What `make` does beside calling programs that have tests of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.needs import needs

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def test_clean_removes_what_was_built_but_not_the_key_that_signs_updates(tmp_path: Path) -> None:
    """Without it no appliance that was built here can be updated again; twice is no error."""
    needs("make")
    build = tmp_path / "build"
    build.mkdir()
    (build / "update-signing.key").write_text("key")
    (build / "holdfast-1.0.ova").write_text("image")
    (build / ".ova-work").mkdir()
    (tmp_path / ".mypy_cache").mkdir()
    for _ in range(2):
        subprocess.run(
            ["make", "-s", "-f", MAKEFILE, "clean"], cwd=tmp_path, check=True, timeout=60
        )
    assert [path.name for path in build.iterdir()] == ["update-signing.key"]
    assert not (tmp_path / ".mypy_cache").exists()
