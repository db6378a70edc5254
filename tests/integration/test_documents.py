"""README and docs against the program: commands are run, options exist, links resolve.

Blocks marked ```console are sessions: every line that begins with `$ ` is run, page by page, in one
scratch folder with a small disk image in it, and must succeed. A block after an HTML comment
`<!-- not run here: why -->` (servers, boots) is only parsed; the comment says where it is covered.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from appliance.cli.main import build_parser
from tests.support import code_tables
from tests.support.needs import needs

_ROOT = Path(__file__).parents[2]
_PAGES = sorted(
    str(path.relative_to(_ROOT))
    for path in (*_ROOT.glob("*.md"), *_ROOT.glob("docs/*.md"), *_ROOT.glob("changelog.d/*.md"))
)
# Of mypy, make bench and borg.
_FOREIGN_OPTIONS = {"--strict", "--seed", "--section", "--quick", "--rounds", "--sparse"}
_DISK_BYTES = 24 << 20


class Command(NamedTuple):
    text: str
    output: list[str]  # as the page shows it
    run: bool


def _commands(page: str) -> Iterator[Command]:
    lines = iter((_ROOT / page).read_text().splitlines())
    before = ""
    for line in lines:
        if line != "```console":
            before = line
            continue
        run = not before.startswith("<!-- not run here:")
        found: list[Command] = []
        for inner in lines:
            if inner == "```":
                break
            if inner.startswith("$ "):
                found.append(Command(inner.removeprefix("$ "), [], run))
            else:
                found[-1].output.append(inner)
        yield from found


_PAGES_WITH_COMMANDS = [page for page in _PAGES if any(_commands(page))]


def _make_disk(path: Path) -> None:
    """Data, text that compresses, and holes; the seed is fixed: this is no search for defects."""
    noise = random.Random(20261120)
    with path.open("wb") as file:
        file.write(noise.randbytes(3 << 20))
        file.seek(12 << 20)
        file.write(b"a line of a log that repeats itself\n" * 50_000)
        file.truncate(_DISK_BYTES)


@pytest.mark.integration
@pytest.mark.parametrize("page", _PAGES_WITH_COMMANDS)
def test_every_command_of_a_page_succeeds_in_order(page: str, tmp_path: Path) -> None:
    """Who follows the page from top to bottom gets what it says."""
    needs("qemu-img", "bash")
    _make_disk(tmp_path / "disk.raw")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")
    } | {
        "HOLDFAST_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(_ROOT),  # this checkout, whatever the environment has installed
    }
    for command in _commands(page):
        if not command.run:
            continue
        setting = re.fullmatch(r"export (\w+)=(\S+)", command.text)
        if setting:
            environment[setting[1]] = setting[2]
            continue
        shown_file = re.fullmatch(r"cat (\S+)", command.text)
        if shown_file:  # the page shows a file that the reader has made
            (tmp_path / shown_file[1]).write_text("\n".join(command.output) + "\n")
        done = subprocess.run(
            ["bash", "-c", command.text],
            cwd=tmp_path,
            env=environment,
            timeout=120,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"$ {command.text}\n{done.stdout}"


@pytest.mark.parametrize("page", _PAGES_WITH_COMMANDS)
def test_every_holdfast_command_of_a_page_is_one_the_parser_takes(page: str) -> None:
    """Also those that are not run here."""
    parser = build_parser()
    for command in _commands(page):
        words = shlex.split(command.text, comments=True)
        if words[0] == "holdfast":
            try:
                parser.parse_args(words[1:])
            except SystemExit:
                pytest.fail(f"{page}: $ {command.text}")


def _leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[str]:
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(words)
    for group in groups:
        for name, child in group.choices.items():
            yield from _leaves(child, (*words, name))


def _options(parser: argparse.ArgumentParser) -> set[str]:
    found: set[str] = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= _options(child)
    return found


def test_the_table_of_commands_lists_all_and_no_others() -> None:
    """A visitor sees the whole program, and nothing that is not there."""
    text = (_ROOT / "docs/commands.md").read_text()
    listed = re.findall(r"^\| `([a-z -]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(_leaves(build_parser()))


@pytest.mark.parametrize("page", _PAGES)
def test_every_option_named_on_a_page_exists(page: str) -> None:
    """No page sends a reader to an option that the program does not have."""
    options = _options(build_parser()) | _FOREIGN_OPTIONS
    text = re.sub(r"<!--.*?-->", "", (_ROOT / page).read_text(), flags=re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]\b(?!-?…)", text))
    assert named <= options, named - options


@pytest.mark.parametrize("page", _PAGES)
def test_every_link_between_documents_leads_somewhere(page: str) -> None:
    """Files and headings that a page links to exist."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (_ROOT / page).read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        path = (_ROOT / page).parent / name if name else _ROOT / page
        assert path.exists(), f"{page}: {target}"
        if heading:
            assert heading in _headings(path), f"{page}: {target}"


def _headings(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", sorted(code_tables.TABLES))
def test_the_tables_that_come_from_the_code_are_up_to_date(page: str) -> None:
    """Every error and reason code of the product is explained; run `tests.support.code_tables`."""
    text = (_ROOT / page).read_text()
    assert code_tables.replaced(page, text) == text


@pytest.mark.parametrize("page", _PAGES)
def test_a_page_stays_short(page: str) -> None:
    """README below 140 lines, others below 250; those that are mostly tables get more."""
    limit = {"README.md": 140, "docs/format.md": 320, "docs/operations.md": 600}.get(page, 250)
    assert len((_ROOT / page).read_text().splitlines()) < limit


def test_every_changelog_fragment_is_named_for_its_kind_and_says_something() -> None:
    """A release collects them by kind."""
    kinds = {"added", "changed", "fixed", "removed", "security"}
    for path in (_ROOT / "changelog.d").iterdir():
        if path.name != "README.md":
            name, kind, suffix = path.name.split(".")
            assert re.fullmatch(r"[a-z0-9-]+", name) and kind in kinds and suffix == "md", path.name
            assert path.read_text().strip(), path.name
