"""The format pages and locking.md against the code: layouts, constants, enums, fields.

A table is preceded by an HTML comment that names what it describes. Whatever the format modules
define must have a table, and every row must say what the code says.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from dataclasses import asdict
from enum import IntEnum, IntFlag
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import pytest

from appliance.base.consistency import Consistency
from appliance.base.run_context import RunContext
from appliance.base.secret import Secret
from appliance.base.units import MIB, parse_size
from appliance.jobs.backup import back_up
from appliance.repository.repository import Repository
from appliance.sources.frozen import FrozenDisk, FrozenVm
from tests.support.memory_reader import MemoryReader

_ROOT = Path(__file__).parents[2]
_PAGES = ("docs/format.md", "docs/overlay-format.md", "docs/locking.md")
_MODULES = ("appliance.repository.format", "appliance.blocks.overlay_journal")
_DERIVED = {
    "PACK_FRAME_BYTES",
    "HEADER_BYTES",
    "RECORD_BYTES",
    "RAW_LIMIT_BYTES",
}  # said by other rows
_TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "s": "bytes", "x": "zeros"}


class Table(NamedTuple):
    kind: str
    name: str
    rows: list[list[str]]


def _tables() -> list[Table]:
    found = []
    for page in _PAGES:
        lines = (_ROOT / page).read_text().splitlines()
        for number, line in enumerate(lines):
            match = re.fullmatch(r"<!-- (struct|constants|enum|model|rules): (\S+) -->", line)
            if match is None:
                continue
            rows = []
            for row in lines[number + 3 :]:  # after the header and its rule
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in row.strip("|").split("|")])
            found.append(Table(match[1], match[2], rows))
    return found


_TABLES = _tables()


def _of(kind: str) -> list[Any]:
    return [pytest.param(t, id=t.name) for t in _TABLES if t.kind == kind]


def _named(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _layout(layout: str) -> list[tuple[int, int, str]]:
    """The fields of a Struct as (offset, size, type)."""
    assert layout[0] == "<", "integers on disk are little-endian"
    fields, offset = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout[1:]):
        repeat, times = int(count or 1), 1
        if code not in "sx":
            repeat, times = 1, repeat
        for _ in range(times):
            size = repeat * Struct(f"<{code}").size
            fields.append((offset, size, _TYPES[code]))
            offset += size
    return fields


def _value(text: str) -> Any:
    """The value of a cell: `32 zero bytes`, `64 KiB`, or a Python literal."""
    text = text.strip("`")
    zeros = re.fullmatch(r"(\d+) zero bytes", text)
    if zeros:
        return bytes(int(zeros[1]))
    if re.fullmatch(r"[\d.]+ [KMGT]iB", text):
        return parse_size(text)
    return ast.literal_eval(text)


@pytest.mark.parametrize("table", _of("struct"))
def test_a_layout_table_says_what_the_struct_packs(table: Table) -> None:
    """Offsets, sizes and types on the page are those of the code."""
    written = [(int(offset), int(size), kind) for offset, size, kind, _ in table.rows]
    assert written == _layout(_named(table.name).format)


@pytest.mark.parametrize("table", _of("constants"))
def test_a_constant_on_the_page_has_the_value_of_the_code(table: Table) -> None:
    """Magics, limits and names on the page are those of the code."""
    for name, value, *_ in table.rows:
        assert _value(value) == _named(f"{table.name}.{name}"), name


@pytest.mark.parametrize("table", _of("enum"))
def test_an_enum_table_lists_all_members_and_no_others(table: Table) -> None:
    """Kinds and flags on the page are those of the code."""
    written = {re.split(r"\W", row[1])[0]: int(row[0]) for row in table.rows}
    members: type[IntEnum] | type[IntFlag] = _named(table.name)
    assert written == {member.name: member.value for member in members}


@pytest.mark.parametrize("table", _of("model"))
def test_a_model_table_lists_all_fields_and_no_others(table: Table) -> None:
    """Fields of JSON documents on the page are those of the code."""
    written = [name.strip() for row in table.rows for name in row[0].split(",")]
    assert sorted(written) == sorted(_named(table.name).model_fields)


@pytest.mark.parametrize("table", _of("rules"))
def test_the_table_of_chunk_rules_lists_all_with_their_numbers(table: Table) -> None:
    """A writer made from the page cuts where ours does."""
    written = [[int(cell) for cell in row] for row in table.rows]
    rules = _named(table.name).items()
    assert written == [[number, *asdict(rule).values()] for number, rule in rules]


@pytest.mark.parametrize("module_name", _MODULES)
def test_every_struct_enum_and_constant_of_a_format_module_is_on_the_page(module_name: str) -> None:
    """Nothing reaches the disk that the page does not describe."""
    module = importlib.import_module(module_name)
    tables = {(table.kind, table.name): table for table in _TABLES}
    listed = {row[0] for row in tables["constants", module_name].rows}
    for name, value in vars(module).items():
        dotted = f"{module_name}.{name}"
        if name.startswith("_") or getattr(value, "__module__", module_name) != module_name:
            continue
        if isinstance(value, Struct):
            assert ("struct", dotted) in tables, name
        elif isinstance(value, type) and issubclass(value, (IntEnum, IntFlag)):
            assert ("enum", dotted) in tables, name
        elif name.isupper() and name not in {*_DERIVED, "KIB", "MIB", "GIB", "FULL"}:
            assert name in listed, name


@pytest.mark.parametrize("passphrase", [None, b"correct horse"], ids=["plain", "encrypted"])
def test_the_escape_hatch_reads_a_disk_without_holdfast(
    tmp_path: Path, passphrase: bytes | None
) -> None:
    """The page is enough: a script that imports nothing of ours restores the disk bit by bit."""
    secret = None if passphrase is None else Secret(passphrase)
    disk = bytearray(20 * MIB + 512)
    for number in range(0, 20 * MIB, 12288):  # every third block, none like another
        disk[number : number + 8] = number.to_bytes(8, "little")
    disk[9 * MIB : 11 * MIB] = bytes(2 * MIB)
    folder = tmp_path / "repository"
    Repository.create(folder, passphrase=secret)
    with Repository.open(folder, passphrase=secret) as repository:
        frozen = FrozenDisk(number=0, label="disk", reader=MemoryReader(bytes(disk)))
        vm = FrozenVm(
            name="web",
            created_at=repository.clock.now(),
            consistency=Consistency.OFFLINE,
            source="image",
            disks=[frozen],
        )
        point = back_up(repository, vm, RunContext.quiet()).manifest.point_id
    command = [sys.executable, str(_ROOT / "docs/escape_hatch.py"), str(folder), point, "0"]
    command.append(str(tmp_path / "disk.raw"))
    if passphrase is not None:
        (tmp_path / "passphrase").write_bytes(passphrase + b"\n")
        command.append(str(tmp_path / "passphrase"))
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "disk.raw").read_bytes() == bytes(disk)


def test_the_escape_hatch_imports_nothing_of_holdfast() -> None:
    """It must work where Holdfast cannot be installed."""
    tree = ast.parse((_ROOT / "docs/escape_hatch.py").read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    ]
    ours = {"appliance", "vmware", "hyperv", "nbd_server", "nfs_server", "lab"}
    assert not ours & {str(module).split(".")[0] for module in modules}
