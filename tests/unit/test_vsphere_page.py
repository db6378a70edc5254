"""docs/vsphere.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_guards_has_every_code_and_no_other() -> None:
    """A new guard comes with its row."""
    page = (ROOT / "docs/vsphere.md").read_text()
    told = re.findall(r"^\| `(cbt\.[a-z-]+)` \|", page, re.MULTILINE)
    code = (ROOT / "vmware/changed_blocks.py").read_text()
    known = re.findall(r'"(cbt\.[a-z-]+)"', code)
    assert len(told) == len(set(told))
    assert set(told) == set(known)


def test_every_module_that_the_page_names_exists() -> None:
    """Sections lead to the code."""
    page = (ROOT / "docs/vsphere.md").read_text()
    named = re.findall(r"`([a-z_/]+\.py)`", page)
    assert named
    for name in named:
        assert (ROOT / "vmware" / name).is_file(), name
