"""The bench runs foreign programs: deadlines, failures, leftovers, and what their output means."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import pytest

from tests.perf import apt_sources, programs, sparse
from tests.perf.context import Figures, alternate, prepared
from tests.perf.images import ROOT
from tests.perf.peers import parse_fio
from tests.perf.programs import NotMeasuredError
from tests.perf.sections.incremental import changed_extents
from tests.perf.table import Missing, Samples

FIO = {
    "jobs": [
        {"error": 0, "read": {"iops": 1234.5, "bw_bytes": 2097152, "lat_ns": {"mean": 50_000.0}}}
    ]
}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_fio_figures_are_read_from_its_json() -> None:
    """IOPS, MiB/s and mean latency of the first job, also when notes come before the JSON."""
    figures = parse_fio(f"note: something\n{json.dumps(FIO, indent=1)}")
    assert figures == {"iops": 1234.5, "mib_per_s": 2.0, "latency_us": 50.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fio: no such engine",
        "{",
        "{}",
        '{"jobs": []}',
        json.dumps({"jobs": [{"error": 5, "read": {}}]}),
        json.dumps({"jobs": [{"error": 0, "read": {"iops": 1}}]}),
    ],
)
def test_output_that_is_no_result_is_a_reason(text: str) -> None:
    """A failed or changed fio is a row that says so, not a crash and not a zero."""
    with pytest.raises(NotMeasuredError):
        parse_fio(text)


def test_a_program_that_fails_is_a_reason_with_its_own_words() -> None:
    """The end of stderr is in the message."""
    command = [sys.executable, "-c", "import sys; sys.exit('disk on fire')"]
    with pytest.raises(NotMeasuredError, match="exited with 1: disk on fire"):
        programs.run(command)


def test_a_program_that_is_not_there_is_a_reason() -> None:
    """Nothing is started; the missing name is the message."""
    with pytest.raises(NotMeasuredError, match="missing program: no-such-program"):
        programs.run(["no-such-program"])


def test_a_hanging_program_is_stopped_with_its_children(tmp_path: Path) -> None:
    """After the time limit neither it nor what it started is left."""
    pids = tmp_path / "pids"
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}')\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(NotMeasuredError, match="time limit"):
        programs.run([sys.executable, "-c", script, pids], timeout_s=2)
    left = [int(pid) for pid in pids.read_text().split()]
    deadline = time.monotonic() + 10
    while any(map(alive, left)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, left))


def test_peak_memory_is_the_programs_own() -> None:
    """Run from a small process, a child that fills 200 MiB is told from one that does nothing.

    From a process of its own: the kernel's figure starts at the size of who forked, here pytest.
    """
    script = (
        "import sys\n"
        "from tests.perf.programs import run\n"
        "for size in (0, 200 << 20):\n"
        "    words = [sys.executable, '-c', f\"bytearray({size}).replace(b'a', b'b')\"]\n"
        "    print(run(words).peak_rss_bytes)\n"
    )
    took = programs.run([sys.executable, "-c", script], environment={"PYTHONPATH": str(ROOT)})
    small, large = map(int, took.stdout.split())
    assert large >= 200 << 20
    assert small < 100 << 20


def test_a_server_is_gone_after_its_block() -> None:
    """Also when the block ends with an error."""
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    with (
        pytest.raises(KeyError),
        programs.server(command, ready=lambda out: bool(out.read())) as process,
    ):
        assert alive(process.pid)
        raise KeyError
    assert not alive(process.pid)


def test_a_server_that_ends_before_it_is_ready_is_a_reason() -> None:
    """Its own words are the message."""
    command = [sys.executable, "-c", "import sys; sys.exit('port taken')"]
    with (
        pytest.raises(NotMeasuredError, match="port taken"),
        programs.server(command, ready=lambda _: False),
    ):
        pass


def test_contestants_take_turns_and_a_failure_takes_only_itself_out() -> None:
    """Each round has another first; who failed once is not asked again and has a reason."""
    calls: list[str] = []

    def good(number: int) -> Figures:
        calls.append(f"good {number}")
        return {"seconds": float(number)}

    def bad(number: int) -> Figures:
        calls.append(f"bad {number}")
        raise NotMeasuredError("broken")

    results = alternate(3, {"good": good, "bad": bad})
    assert calls == ["good 0", "bad 0", "good 1", "good 2"]
    assert results.value("good", "seconds") == Samples(values=(0.0, 1.0, 2.0))
    assert results.value("bad", "seconds") == Missing(reason="broken")


def test_a_preparation_that_failed_is_told_by_every_use() -> None:
    """The section goes on; each contestant that needs it carries the reason."""

    def make() -> int:
        raise NotMeasuredError("no qcow2")

    use = prepared(make)
    for _ in range(2):
        with pytest.raises(NotMeasuredError, match="no qcow2"):
            use()
    assert prepared(lambda: 7)() == 7


def test_one_percent_is_one_percent_and_the_seed_repeats_it() -> None:
    """Distinct aligned extents inside the disk, the same for the same seed."""
    extents = changed_extents(random.Random("a"), 1 << 30, 65536)
    assert len(extents) == len(set(extents)) == (1 << 30) // 65536 // 100
    assert all(start % 65536 == 0 and start + 65536 <= 1 << 30 for start in extents)
    assert extents == changed_extents(random.Random("a"), 1 << 30, 65536)
    assert extents != changed_extents(random.Random("b"), 1 << 30, 65536)


def test_data_of_a_sparse_file_is_found_and_holes_are_not_counted(tmp_path: Path) -> None:
    """Extents cover all data; a swap changes what the path names, not the files."""
    path, other = tmp_path / "disk", tmp_path / "other"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), b"a" * 65536, 16 << 20)
        os.pwrite(file.fileno(), b"b" * 65536, 48 << 20)
    assert sparse.data_bytes(path) == 2 * 65536
    other.write_bytes(b"other")
    sparse.swap_in(other, path)
    assert path.read_bytes() == other.read_bytes() == b"other"


ONE_LINE = """\
# deb http://commented.example/debian stable main
deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://a.example/debian stable main contrib
deb http://b.example/debian stable contrib
deb-src http://c.example/debian stable main
"""
DEB822 = """\
# first
Types: deb deb-src
URIs: http://a.example/debian
# a comment inside
Suites: stable stable-updates
Components: main
Signed-By: /usr/share/keyrings/k.gpg

Types: deb
URIs: http://b.example/debian
Suites: stable
Components: main
Enabled: no

Types: deb
URIs: http://c.example/x
Suites: stable
Components: other

Types: deb
URIs: http://d.example/debian
Suites: stable
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
"""


def test_one_line_sources_are_read() -> None:
    """Only `deb` lines that offer main; the key is kept."""
    key = "/usr/share/keyrings/k.gpg"
    expected = apt_sources.Source(uri="http://a.example/debian", suite="stable", signed_by=key)
    assert list(apt_sources.parse_one_line(ONE_LINE)) == [expected]


def test_deb822_sources_are_read_and_written_back() -> None:
    """Disabled stanzas and other components are left out; what is written reads the same."""
    sources = list(apt_sources.parse_deb822(DEB822))
    assert [(source.uri, source.suite) for source in sources] == [
        ("http://a.example/debian", "stable"),
        ("http://a.example/debian", "stable-updates"),
        ("http://d.example/debian", "stable"),
    ]
    assert list(apt_sources.parse_deb822(apt_sources.as_deb822(sources))) == sources


def test_only_the_release_itself_is_taken_from_the_host(tmp_path: Path) -> None:
    """Other vendors' suites on this machine never reach an image."""
    codename = apt_sources.host_codename()
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text(f"deb http://a.example/debian {codename} main\n")
    (parts / "vendor.list").write_text("deb http://v.example/apt vendor main\n")
    (parts / "gone.list.disabled").write_text(f"deb http://g.example/debian {codename} main\n")
    assert [source.uri for source in apt_sources.host_sources(tmp_path)] == [
        "http://a.example/debian"
    ]
