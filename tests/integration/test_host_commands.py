"""`host …` and `vm list` against vcsim, as an operator and as a script uses them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.base.ids import new_run_id
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.intents import IntentKind
from appliance.repository.repository import Repository
from appliance.sources.vm_identity import VmIdentity
from lab.vcenter.lab_vcenter import LabVcenter
from tests.support import certificates
from tests.support.forwarder import Forwarder
from tests.support.holdfast_program import ROOT, command, environment, run, run_json
from tests.support.memory_reader import MemoryReader
from tests.support.needs import needs
from tests.support.points import commit_point
from tests.support.vcsim import PASSWORD, Vcsim, vcsim
from vmware.privileges import BACKUP, PRIVILEGES, Purpose

pytestmark = pytest.mark.integration


USER = "backup"
_LOGIN = ("-username", USER)


@pytest.fixture(scope="module")
def server() -> Iterator[Vcsim]:
    with vcsim(*_LOGIN, "-vm", "2") as running:
        yield running


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return path


def add_words(port: int, *more: str | Path, name: str = "vc1") -> tuple[str | Path, ...]:
    address = f"127.0.0.1:{port}"
    return ("host", "add", name, "--type", "vsphere", "--address", address, "--user", USER, *more)


@pytest.fixture
def home(tmp_path: Path, server: Vcsim, password_file: Path) -> Path:
    """A state folder with the vcsim registered as vc1."""
    words = ("--password-file", password_file, "--accept-fingerprint", server.fingerprint)
    run(tmp_path / "home", *add_words(server.port, *words))
    return tmp_path / "home"


def test_a_host_is_added_listed_tested_and_removed(home: Path, server: Vcsim) -> None:
    """The fingerprint stays as it was accepted; nothing remains of a removed host."""
    (listed,) = run_json(home, "host", "list")
    assert listed["host"] == "vc1"
    assert (listed["port"], listed["user"]) == (server.port, USER)
    assert listed["fingerprint_sha256"] == server.fingerprint
    assert "vc1" in run(home, "host", "list").stdout
    tested = run_json(home, "host", "test", "vc1")
    assert tested["is_vcenter"] and tested["missing_privileges"] == []
    assert "no privilege is missing" in run(home, "host", "test", "vc1").stdout
    run(home, "host", "remove", "vc1")
    assert run_json(home, "host", "list") == []
    gone = run_json(home, "host", "test", "vc1", expect=1)
    assert gone["error"]["code"] == "host.not-found"


@pytest.mark.parametrize("form", ["colons", "digits", "openssl", "sha1"])
def test_a_fingerprint_may_be_given_in_any_form_and_sha256_is_pinned(
    tmp_path: Path, server: Vcsim, password_file: Path, form: str
) -> None:
    """Whatever the operator could copy; a SHA-1 vouches once, for its own certificate."""
    digits = server.fingerprint.replace(":", "").lower()
    given = {
        "colons": server.fingerprint,
        "digits": digits,
        "openssl": f"sha256 Fingerprint={server.fingerprint}",
        "sha1": hashlib.sha1(_certificate(server)).hexdigest(),
    }[form]
    words = ("--password-file", password_file, "--accept-fingerprint", given)
    added = run_json(tmp_path / "home", *add_words(server.port, *words))
    assert added["fingerprint_sha256"] == server.fingerprint


def _certificate(server: Vcsim) -> bytes:
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((server.address, server.port)))


def test_a_certificate_that_nobody_accepted_is_named_and_nothing_is_stored(
    tmp_path: Path, server: Vcsim
) -> None:
    """A script without --accept-fingerprint is told the fingerprint to look at."""
    home = tmp_path / "home"
    refused = run_json(home, *add_words(server.port), expect=1)
    assert refused["error"]["code"] == "host.fingerprint-not-accepted"
    assert server.fingerprint in refused["error"]["message"]
    assert run_json(home, "host", "list") == []


def test_another_certificate_than_the_accepted_one_is_refused(
    tmp_path: Path, server: Vcsim, password_file: Path
) -> None:
    """Both fingerprints are named; what is no fingerprint is a usage error."""
    words = ("--password-file", password_file, "--accept-fingerprint")
    other = "00:" * 31 + "00"
    refused = run_json(tmp_path / "home", *add_words(server.port, *words, other), expect=1)
    assert refused["error"]["code"] == "vsphere.certificate"
    assert server.fingerprint in refused["error"]["message"]
    run(tmp_path / "home", *add_words(server.port, *words, "abc"), expect=2)


def test_a_wrong_password_is_not_stored_and_never_shown(tmp_path: Path, server: Vcsim) -> None:
    """Logging in comes before storing; the password comes from standard input."""
    home = tmp_path / "home"
    words = command(*add_words(server.port, "--accept-fingerprint", server.fingerprint, "--json"))
    for password, code in (("wrong horse", 1), (PASSWORD, 0)):
        done = subprocess.run(
            words,
            env=environment(home),
            cwd=ROOT,
            input=f"{password}\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert password not in done.stdout + done.stderr
        document = json.loads(done.stdout)
        assert code == 0 or document["error"]["code"] == "vsphere.login"
        assert len(run_json(home, "host", "list")) == 1 - code


def test_a_person_is_shown_the_fingerprint_and_asked_for_the_password(
    tmp_path: Path, server: Vcsim
) -> None:
    """On a terminal: yes accepts, anything else does not; the password is not echoed."""
    home = tmp_path / "home"
    words = command(*add_words(server.port))
    assert _on_terminal(words, home, ["no\n"])[0] == 1
    assert run_json(home, "host", "list") == []
    code, shown = _on_terminal(words, home, ["yes\n", f"{PASSWORD}\n"])
    assert code == 0, shown
    assert server.fingerprint in shown and PASSWORD not in shown
    assert len(run_json(home, "host", "list")) == 1


def _on_terminal(words: list[str], home: Path, answers: list[str]) -> tuple[int, str]:
    """Run with a terminal; answer whenever a colon ends what was shown."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execvpe(words[0], words, environment(home))
    shown = ""
    with contextlib.suppress(OSError):  # EIO: the program has ended
        while block := os.read(fd, 4096):
            shown += block.decode()
            if answers and shown.rstrip().endswith(":"):
                os.write(fd, answers.pop(0).encode())
                shown += "\n"
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_one_server_is_registered_under_one_name(
    home: Path, server: Vcsim, password_file: Path
) -> None:
    """Its own id tells, whatever address it is reached by."""
    words = ("--password-file", password_file, "--accept-fingerprint", server.fingerprint)
    with Forwarder(("127.0.0.1", server.port)) as other:
        again = run_json(home, *add_words(other.port, *words, name="vc2"), expect=1)
    assert again["error"]["code"] == "host.exists"
    same_name = run_json(home, *add_words(server.port, *words), expect=1)
    assert same_name["error"]["code"] == "host.exists"


def test_a_changed_certificate_stops_before_the_password_is_sent(
    tmp_path: Path, server: Vcsim, password_file: Path
) -> None:
    """Somebody in between sees a TLS handshake and nothing more; both fingerprints are named.

    A server that is gone altogether is unreachable, which may pass.
    """
    needs("openssl")
    home = tmp_path / "home"
    words = ("--password-file", password_file, "--accept-fingerprint", server.fingerprint)
    with Forwarder(("127.0.0.1", server.port)) as forwarder, _impostor(tmp_path) as impostor:
        run(home, *add_words(forwarder.port, *words))
        assert run_json(home, "vm", "list")
        forwarder.target = ("127.0.0.1", impostor.port)
        for verb in (("host", "test", "vc1"), ("vm", "list")):
            refused = run_json(home, *verb, expect=1)
            assert refused["error"]["code"] == "vsphere.certificate"
            assert server.fingerprint in refused["error"]["message"]
        assert impostor.received == b""
    for verb in (("host", "test", "vc1"), ("vm", "list")):
        away = run_json(home, *verb, expect=1)
        assert away["error"]["code"] == "vsphere.unreachable"
        assert away["error"]["retryable"]


class Impostor:
    """A TLS server with a certificate of its own that keeps what it is sent."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received = b""

    def serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                self._listener.close()
                return
            with contextlib.suppress(OSError), self._secured(client) as secured:
                self.received += secured.recv(65536)

    def _secured(self, client: socket.socket) -> ssl.SSLSocket:
        with client:
            return self._context.wrap_socket(client, server_side=True)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _impostor(folder: Path) -> Iterator[Impostor]:
    certificates.make_authority(folder / "ca", "impostor")
    certificates.make_certificate(folder / "ca", folder / "ca", "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca/server-cert.pem", folder / "ca/server-key.pem")
    impostor = Impostor(context)
    thread = threading.Thread(target=impostor.serve)
    thread.start()
    try:
        yield impostor
    finally:
        impostor.stop()
        thread.join()


def test_a_host_with_things_of_ours_on_it_is_removed_only_by_force(home: Path) -> None:
    """Else nobody could log in to clean up."""
    with Catalog.open(home) as catalog:
        catalog.intents.record(
            IntentKind.SNAPSHOT,
            host="vc1",
            run_id=new_run_id(catalog.clock.now()),
            target_moref="vm-1",
            name="holdfast-x",
        )
    refused = run_json(home, "host", "remove", "vc1", expect=1)
    assert refused["error"]["code"] == "host.in-use"
    run(home, "host", "remove", "vc1", "--force")


def test_a_lost_key_says_what_to_do(home: Path) -> None:
    """Before any connection is made."""
    (home / "secrets.key").unlink()
    lost = run_json(home, "vm", "list", expect=1)
    assert lost["error"]["code"] == "secrets.key-lost"
    assert "add them again" in lost["error"]["next_step"]


def test_vms_are_listed_with_disks_and_protection(home: Path) -> None:
    """A VM is protected by the points that carry its identity, whatever they are called."""
    (listed,) = run_json(home, "host", "list")
    before = run_json(home, "vm", "list")
    assert len(before) == 4
    assert {vm["protected"] for vm in before} == {False}
    chosen, stranger = before[0], before[1]
    assert chosen["power"] == "on" and chosen["folder"] == "DC0/vm"
    assert chosen["disks"][0]["size_bytes"] == chosen["size_bytes"] > 0
    assert chosen["disks"][0]["obstacle"] is None and chosen["obstacles"] == []
    Repository.create(home / "repository")
    identity = VmIdentity(
        server_id=listed["server_id"],
        moref="vm-of-an-earlier-registration",
        instance_uuid=chosen["instance_uuid"],
    )
    with Repository.open(home / "repository") as repository:
        disk = MemoryReader(b"x" * 4096)
        own = commit_point(repository, disk, vm="old", hardware={"identity": identity.as_json()})
        commit_point(repository, disk, vm=stranger["vm"])
    after = {vm["moref"]: vm for vm in run_json(home, "vm", "list", "--host", "vc1")}
    newest = after[chosen["moref"]]["newest_point"]
    assert (newest["point_id"], newest["vm"]) == (own.point_id, "old")
    assert after[stranger["moref"]]["protected"] is False
    shown = run(home, "vm", "list").stdout
    assert f"{own.created_at:%Y-%m-%d %H:%M} as old" in shown


def test_a_repository_that_cannot_be_opened_does_not_hide_the_vms(home: Path) -> None:
    """Protection is then not known, and the exit code says to look."""
    listed = run_json(home, "vm", "list", "--repo", home / "nowhere", expect=3)
    assert {vm["protected"] for vm in listed} == {None}


def test_a_host_that_is_away_does_not_hide_the_others(home: Path) -> None:
    """It is named, and the exit code says to look; asked for alone, it is an error."""
    with Catalog.open(home) as catalog:
        record = catalog.hosts.get("vc1")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        away = replace(record, name="away", port=port, server_id="another")
        catalog.hosts.add(away, Secret.of_text(PASSWORD))
    done = run(home, "vm", "list", "--json", expect=3)
    assert len(json.loads(done.stdout)) == 4
    assert "[vsphere.unreachable] away" in done.stderr
    run(home, "vm", "list", "--host", "away", expect=1)


def test_a_thousand_vms_are_listed(tmp_path: Path, password_file: Path) -> None:
    """Each once, each with an identity of its own."""
    home = tmp_path / "home"
    with vcsim(*_LOGIN, "-vm", "2", "-copies", "249") as large:
        words = ("--password-file", password_file, "--accept-fingerprint", large.fingerprint)
        run(home, *add_words(large.port, *words))
        listed = run_json(home, "vm", "list")
    assert len(listed) == 1000
    assert len({vm["moref"] for vm in listed}) == 1000
    assert len({vm["instance_uuid"] for vm in listed}) == 1000
    assert all(vm["disks"] for vm in listed)


def test_no_host_at_all_is_told(tmp_path: Path) -> None:
    """An empty list, and the next step."""
    assert run_json(tmp_path / "home", "vm", "list") == []
    assert "host add" in run(tmp_path / "home", "vm", "list").stderr


@pytest.mark.parametrize(
    ("granted", "code", "lacking"),
    [
        ((), 1, "snapshot"),
        ((*BACKUP, Purpose.HOT_ADD), 3, "restore"),
        (tuple(Purpose), 0, None),
    ],
)
def test_every_missing_privilege_is_named_by_purpose(
    tmp_path: Path, password_file: Path, granted: tuple[Purpose, ...], code: int, lacking: str
) -> None:
    """Exit code 1: backups would fail; 3: only something optional would."""
    with LabVcenter() as vcenter:
        given = {privilege for purpose in granted for privilege in PRIVILEGES[purpose]}
        role = vcenter.accounts.add_role("backup", given)
        vcenter.accounts.add_user(USER, PASSWORD)
        vcenter.accounts.permit(USER, role, vcenter.root_folder)
        words = ("--password-file", password_file, "--accept-fingerprint", vcenter.fingerprint)
        run(tmp_path / "home", *add_words(vcenter.port, *words))
        tested = run_json(tmp_path / "home", "host", "test", "vc1", expect=code)
        shown = run(tmp_path / "home", "host", "test", "vc1", expect=code).stdout
    named = {p for item in tested["missing_privileges"] for p in item["privileges"]}
    assert not named & given
    assert "System.Read" not in named  # part of every role
    purposes = [item["purpose"] for item in tested["missing_privileges"]]
    if lacking is None:
        assert purposes == []
    else:
        assert lacking in purposes
        assert all(privilege in shown for privilege in named)
        assert "next step" in shown
    assert ("VirtualMachine.State.CreateSnapshot" in named) == (code == 1)


def test_a_lone_esxi_host_is_a_host_too(tmp_path: Path, password_file: Path) -> None:
    """It has no id of its own in the API, so it is known by its address."""
    with vcsim(*_LOGIN, "-esx", "-vm", "1") as esxi:
        words = ("--password-file", password_file, "--accept-fingerprint", esxi.fingerprint)
        added = run_json(tmp_path / "home", *add_words(esxi.port, *words))
        assert added["server_id"] == f"127.0.0.1:{esxi.port}"
        assert not run_json(tmp_path / "home", "host", "test", "vc1")["is_vcenter"]
        assert len(run_json(tmp_path / "home", "vm", "list")) == 1
