"""The PowerShell that is sent to Hyper-V hosts, judged without Windows."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_powershell

SCRIPTS = Path(__file__).parents[2] / "hyperv" / "scripts"
SHARED = {"bootstrap.ps1", "common.ps1"}
ALL = sorted(SCRIPTS.glob("*.ps1"))
OWN = [script for script in ALL if script.name not in SHARED]
PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))


def header(script: Path) -> str:
    lines = script.read_text().splitlines()
    count = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:count])


def body(script: Path) -> str:
    return script.read_text()[len(header(script)) :]


def expandable(node: tree_sitter.Node) -> Iterator[bytes]:
    """Return the strings in double quotes below a node."""
    if node.type.startswith("expandable"):
        yield node.text or b""
    for child in node.children:
        yield from expandable(child)


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.stem)
def test_a_script_parses(script: Path) -> None:
    """No script has a syntax error."""
    assert not PARSER.parse(script.read_bytes()).root_node.has_error


def test_the_parser_would_see_an_unclosed_brace() -> None:
    """What the test above relies on."""
    assert PARSER.parse(b"if ($a) {\n'x'\n").root_node.has_error


@pytest.mark.parametrize("script", OWN, ids=lambda script: script.stem)
def test_a_script_states_its_contract(script: Path) -> None:
    """Name, parameters, value and oldest Windows stand in its header."""
    text = header(script)
    assert text.startswith(f"# Script: {script.stem}\n")
    assert all(f"\n# {field}: " in text for field in ("Parameters", "Value", "Minimum"))


@pytest.mark.parametrize("script", OWN, ids=lambda script: script.stem)
def test_a_script_uses_only_parameters_that_its_header_names(script: Path) -> None:
    """And every code it stops with is in its header, or is one of the shared functions'."""
    used = set(re.findall(r"\$parameters\.(\w+)", body(script)))
    assert used <= set(re.findall(r'"(\w+)":?', header(script)))
    codes = set(re.findall(r"(?:Stop-Script|parameters\.\w+) '([a-z-]+)'", body(script)))
    assert all(code in header(script) for code in codes)


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.stem)
def test_no_data_is_put_into_text_by_a_script(script: Path) -> None:
    """No expandable string holds a variable, nothing is evaluated from data."""
    code = "\n".join(
        line for line in script.read_text().splitlines() if not line.lstrip().startswith("#")
    )
    assert not [text for text in expandable(PARSER.parse(code.encode()).root_node) if b"$" in text]
    assert "Invoke-Expression" not in code
    assert "-Filter" not in code  # WQL would need quoting
    assert script.name == "bootstrap.ps1" or "ScriptBlock" not in code


def test_a_variable_in_a_string_would_be_seen() -> None:
    """What the test above relies on."""
    assert list(expandable(PARSER.parse(b'$x = "a $name"').root_node)) == [b'"a $name"']


def test_the_bootstrap_fits_into_a_line_of_cmd() -> None:
    """cmd.exe takes 8191 characters, the name of the program included."""
    encoded = base64.b64encode((SCRIPTS / "bootstrap.ps1").read_text().encode("utf-16le"))
    assert len(encoded) < 7900


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.stem)
def test_a_secure_boot_template_is_named_only_to_hosts_that_know_templates(script: Path) -> None:
    """Windows Server 2012 R2 has no such parameter."""
    assert "-SecureBootTemplate" not in body(script)


def test_the_table_of_codes_is_what_the_scripts_stop_with() -> None:
    """No code is missing in CONTRACT.md, and none is there for nothing."""
    table = set(re.findall(r"^\| `([a-z-]+)` \|", (SCRIPTS / "CONTRACT.md").read_text(), re.M))
    used = set()
    for script in ALL:
        used |= set(re.findall(r"Stop-Script '([a-z-]+)'", body(script)))
        used |= set(re.findall(r"parameters\.\w+ '([a-z-]+)'", body(script)))
    assert table == used
