"""What a command does with names, numbers and streams that are not as one would like them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from appliance.cli.main import build_parser
from appliance.cli.output import table
from tests.support.holdfast_program import ROOT, command, environment, run, run_json


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with one recovery point of `web`."""
    folder = tmp_path_factory.mktemp("edges")
    (folder / "disk.img").write_bytes(b"content" * 10_000)
    run(folder, "repo", "init")
    run(folder, "backup", "image", "--vm", "web", folder / "disk.img")
    return folder


def test_a_disk_whose_name_is_not_utf_8_is_backed_up(home: Path) -> None:
    """Linux allows any bytes in a name; the label is text and shows them."""
    path = home / os.fsdecode(b"d\xff.img")
    path.write_bytes(b"content" * 10_000)
    made = run_json(home, "backup", "image", "--vm", "odd", path)
    assert made["disks"][0]["label"] == "d\\xff.img"


@pytest.mark.parametrize("name", ["", "x" * 256, os.fsdecode(b"a\xff")])
def test_a_vm_name_that_no_recovery_point_can_hold_is_refused_at_once(
    home: Path, name: str
) -> None:
    """Before the disks are read, not after."""
    refused = run(home, "backup", "image", "--vm", name, home / "disk.img", expect=2)
    assert "[usage]" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("host", "test", os.fsdecode(b"a\xff")),
        ("host", "list", "--appliance", os.fsdecode(b"https://a\xff/")),
        ("host", "list", "--appliance", "https://a b/", "--token-file", "TOKEN"),
        ("host", "add", "h", "--user", "u", "--type", "hyperv", "--address", "127.0.0.1:99999"),
        ("host", "add", "h", "--user", "u", "--type", "vsphere", "--address", "127.0.0.1:99999"),
    ],
)
def test_names_and_addresses_that_cannot_be_are_usage_errors(
    home: Path, words: tuple[str, ...]
) -> None:
    """Not a traceback, and not a connection to another port than the one that was written."""
    (home / "token").write_text("token\n")
    given = [str(home / "token") if word == "TOKEN" else word for word in words]
    assert "[usage]" in run(home, *given, expect=2).stderr


def test_an_empty_passphrase_in_the_environment_makes_no_open_repository(home: Path) -> None:
    """Whoever sets it means encryption; a script that could not read it gave nothing."""
    place = home / "meant-encrypted"
    refused = run(home, "repo", "init", "--repo", place, expect=2, HOLDFAST_PASSPHRASE="")
    assert "HOLDFAST_PASSPHRASE is empty" in refused.stderr and not place.exists()


def test_a_folder_that_cannot_be_made_is_named(home: Path) -> None:
    """A file stands where a folder of the path should be."""
    place = home / "disk.img" / "repository"
    failed = run(home, "repo", "init", "--repo", place, expect=1)
    assert "[storage.failed]" in failed.stderr and "disk.img" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_standard_output_that_cannot_be_written_is_told(home: Path, how: tuple[str, ...]) -> None:
    """A full disk must not look like an empty list."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("point", "list", *how),
            env=environment(home),
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "standard output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_without_standard_error_the_document_stays_alone_and_no_file_takes_its_number(
    home: Path,
) -> None:
    """As a service that has closed it calls; notes would get into the document, or worse."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command("repo", "check")],
        env=environment(home),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.endswith("clean\n")


def test_a_recovery_key_file_that_is_no_text_is_refused(home: Path) -> None:
    """Somebody named the wrong file."""
    (home / "key").write_bytes(b"\xff\xfe\x00key")
    refused = run(home, "point", "list", "--recovery-key-file", home / "key", expect=2)
    assert "[repository.recovery-key-text]" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("export", "nbd", "P", "--port", "99999"),
        ("export", "nfs", "P", "--port", "-1"),
        ("serve", "--port", "65536"),
        ("serve", "--history-days", "-1"),
        ("serve", "--history-days", "1000000"),
        ("repo", "gc", "--wait", "nan"),
        ("repo", "gc", "--wait", "-1"),
        ("verify", "P", "--memory", "0"),
    ],
)
def test_a_number_out_of_bounds_is_a_usage_error(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A port of 99999 was served as 34463, and history of -1 days was no history."""
    with pytest.raises(SystemExit) as left:
        build_parser().parse_args(words)
    assert left.value.code == 2
    assert repr(words[-1]) in capsys.readouterr().err


def test_names_do_not_steer_the_terminal() -> None:
    """A VM may be named by others; the columns stay columns."""
    shown = table([("\033[2Jred\nnext", "1")], ("VM", "N"))
    assert shown == "VM                N\n\\x1b[2Jred\\nnext  1"
