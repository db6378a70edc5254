"""The daemon serves recovery sessions and finds them again, whatever ended it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import SystemClock
from appliance.blocks.device import BlockReader
from appliance.exports.datastore.session import (
    SessionDisk,
    SessionNotFoundError,
    SessionRecord,
    SessionStore,
)
from appliance.repository.repository import Repository
from appliance.service.daemon_client import DaemonClient, DaemonUnreachableError
from appliance.service.recovery_server import sessions_folder
from tests.support.holdfast_program import run, run_json, serving
from tests.support.needs import needs

pytestmark = pytest.mark.integration
CONTENT = os.urandom(2 << 20)
SERVE = ("serve", "--bind", "127.0.0.1", "--nfs-port", "0", "--portmap", "none", "--reserve", "0")


def nfs(*words: str | Path) -> bytes:
    return subprocess.run([*map(str, words)], check=True, capture_output=True, timeout=60).stdout


@pytest.fixture
def session(tmp_path: Path) -> SessionRecord:
    """A session of a point with one disk, made while no daemon runs."""
    needs("nfs-cat", "nfs-cp", "nfs-ls")
    disk = tmp_path / "disk.raw"
    disk.write_bytes(CONTENT)
    run(tmp_path, "repo", "init")
    point = run_json(tmp_path, "backup", "image", "--vm", "web", disk)["point_id"]
    store = SessionStore(sessions_folder(tmp_path))
    record = SessionRecord(
        session_id=store.new_id(),
        created_at=SystemClock().now(),
        point_id=point,
        vm="web",
        folder="web",
        disks=(SessionDisk(number=0, size_bytes=len(CONTENT), file="web-flat.vmdk"),),
        tree_id=77,
        clients=("127.0.0.1",),
    )
    with Repository.open(tmp_path / "repository") as repository:

        def open_image(point_id: str, number: int) -> BlockReader:
            return repository.open_image(point_id, number)

        store.create(record, {"web.vmx": b"config.version = 8\n"}, open_image)
    return record


def url(document: Any, session: SessionRecord, name: str) -> str:
    port = document["nfs"]["port"]
    return f"nfs://127.0.0.1{session.export_path}/web/{name}?nfsport={port}&mountport={port}"


def test_a_session_outlives_the_kill_of_its_daemon(tmp_path: Path, session: SessionRecord) -> None:
    """The next daemon serves every session that there was, with what was written to it."""
    log = tmp_path / "vmware.log"
    log.write_bytes(os.urandom(300_000))
    with serving(tmp_path, *SERVE) as (process, document):
        assert nfs("nfs-cat", url(document, session, "web.vmx")) == b"config.version = 8\n"
        assert nfs("nfs-cat", url(document, session, "web-flat.vmdk")) == CONTENT
        nfs("nfs-cp", log, url(document, session, "vmware.log"))
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(DaemonUnreachableError):
        DaemonClient(tmp_path).about()
    with serving(tmp_path, *SERVE) as (_, document):
        assert nfs("nfs-cat", url(document, session, "vmware.log")) == log.read_bytes()
        listed = DaemonClient(tmp_path).sessions()
        assert [(each["session_id"], each["served"]) for each in listed] == [
            (session.session_id, True)
        ]


def test_a_withdrawn_session_is_served_no_more_and_can_be_removed(
    tmp_path: Path, session: SessionRecord
) -> None:
    """After `withdraw` its clients find nothing; after `remove` nothing of it is left."""
    store = SessionStore(sessions_folder(tmp_path))
    with serving(tmp_path, *SERVE) as (_, document):
        client = DaemonClient(tmp_path)
        client.withdraw(session.session_id)
        gone = subprocess.run(
            ["nfs-cat", url(document, session, "web.vmx")], capture_output=True, timeout=60
        )
        assert gone.returncode
        client.serve(session.session_id)
        assert nfs("nfs-cat", url(document, session, "web.vmx"))
        client.withdraw(session.session_id)
        store.remove(session.session_id)
        assert client.sessions() == []
    with pytest.raises(SessionNotFoundError):
        store.get(session.session_id)
    assert list(sessions_folder(tmp_path).iterdir()) == []


def test_one_state_folder_has_one_daemon(tmp_path: Path, session: SessionRecord) -> None:
    """A second daemon says that one runs, and takes nothing from it."""
    with serving(tmp_path, *SERVE) as (_, document):
        second = run(tmp_path, *SERVE, "--json", expect=1)
        assert "daemon.running" in second.stdout + second.stderr
        assert nfs("nfs-cat", url(document, session, "web.vmx"))


def test_a_damaged_session_stops_no_other_and_half_made_ones_go(
    tmp_path: Path, session: SessionRecord
) -> None:
    """It is named, its folder is left alone; what no start can still be making is removed."""
    folder = sessions_folder(tmp_path)
    damaged, half = folder / "00000000", folder / "11111111"
    damaged.mkdir()
    damaged.joinpath("session.json").write_text("{")
    half.mkdir()
    os.utime(half, (1, 1))
    with serving(tmp_path, *SERVE) as (_, document):
        assert nfs("nfs-cat", url(document, session, "web.vmx"))
        listed = json.loads(run(tmp_path, "instant", "list", "--json", expect=3).stdout)
    assert [each["session_id"] for each in listed["sessions"]] == [session.session_id]
    assert ["00000000" in text for text in listed["damaged"]] == [True]
    assert damaged.exists() and not half.exists()
    refused = run(tmp_path, "point", "forget", session.point_id, "--json", expect=1)
    assert "session.damaged" in refused.stdout
