"""What is shipped: every package, and nothing that belongs to one machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())
_TEXT_LIMIT_BYTES = 4 << 20
_FOREIGN = {
    "an absolute home path": re.compile(rb"/(?:home|Users)/[A-Za-z0-9._-]+|/root/[.]"),
    "an address of a package index": re.compile(
        rb"(?:index[-_]url|extra[-_]index|registry)\s*[=:]\s*['\"]?https?://|https?://[^\s/]*/simple\b",
        re.IGNORECASE,
    ),
}


def _tracked() -> list[Path]:
    command = ["git", "-C", str(_ROOT), "ls-files", "-z", "--cached", "--others"]
    command.append("--exclude-standard")
    try:
        listed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [_ROOT / name for name in listed.decode().split("\0") if name]


def test_every_package_of_the_root_is_in_the_wheel_and_no_other() -> None:
    """A package that is forgotten in the list would be missing from what users install."""
    wheel = _PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    found = sorted(path.parent.name for path in _ROOT.glob("*/__init__.py"))
    assert found == sorted(wheel)


def test_type_checker_and_import_rules_see_every_package() -> None:
    """What is shipped is also checked."""
    wheel = sorted(_PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert sorted(_PROJECT["tool"]["mypy"]["packages"]) == wheel
    assert sorted(_PROJECT["tool"]["importlinter"]["root_packages"]) == wheel


def test_every_package_says_that_it_is_typed() -> None:
    """Without py.typed the types of an installed package are ignored."""
    packages = [path.parent for path in _ROOT.glob("*/__init__.py")]
    assert [p.name for p in packages if not (p / "py.typed").exists()] == []


def test_the_tests_are_no_package() -> None:
    """An __init__.py under tests/ would let a test folder shadow a product package."""
    assert list((_ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("what", sorted(_FOREIGN))
def test_no_file_of_the_project_names_what_belongs_to_one_machine(what: str) -> None:
    """Neither package index addresses nor home folders travel with the sources."""
    found = []
    for path in _tracked():
        if path.is_file() and path != Path(__file__) and path.stat().st_size < _TEXT_LIMIT_BYTES:
            match = _FOREIGN[what].search(path.read_bytes())
            if match:
                found.append(f"{path.relative_to(_ROOT)}: {match[0].decode(errors='replace')}")
    assert found == []
