"""Sessions against govmomi's simulator: who gets in, who does not, what a lost one costs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.support.vcsim import PASSWORD, Vcsim, vcsim
from vmware.errors import (
    CertificateError,
    LoginError,
    ObjectGoneError,
)
from vmware.inventory import list_vms, read_vm
from vmware.session import Session

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator[Vcsim]:
    with vcsim("-vm", "2") as running:
        yield running


class Asked:
    """A password that counts how often it is asked for."""

    def __init__(self) -> None:
        self.times = 0
        self.again = threading.Event()

    def __call__(self) -> str:
        self.times += 1
        if self.times > 1:
            self.again.set()
        return PASSWORD


def terminate(server: Vcsim, victim: Session) -> None:
    """As an administrator does it: from another session."""
    key = victim.content.sessionManager.currentSession.key
    with server.connect() as other:
        other.content.sessionManager.TerminateSession([key])


def test_the_right_password_logs_in(server: Vcsim) -> None:
    """A session knows what it talks to, in the newest version that both know."""
    with server.connect() as session:
        assert session.is_vcenter
        assert session.about.api_version == "8.0.3.0"
        assert session.about.instance_uuid
        assert session.cookie and session.cookie not in repr(session)


def test_a_wrong_password_is_a_login_error_that_does_not_repeat_it(server: Vcsim) -> None:
    """The error names server and user, never what was tried."""
    with pytest.raises(LoginError, match="as backup") as caught:
        Session.connect(server.endpoint, lambda: "not-the-password")
    assert "not-the-password" not in str(caught.value)


def test_another_certificate_is_refused_before_the_password_is_asked_for(server: Vcsim) -> None:
    """Where the pin does not match, nobody even looks up the password."""
    asked = Asked()
    pinned = ":".join(["00"] * 32)
    with pytest.raises(CertificateError) as caught:
        Session.connect(replace(server.endpoint, fingerprint_sha256=pinned), asked)
    assert asked.times == 0
    assert (caught.value.expected, caught.value.found) == (pinned, server.fingerprint)


def test_without_a_pin_a_self_signed_certificate_is_refused(server: Vcsim) -> None:
    """No pin means the system's authorities, not blind trust."""
    asked = Asked()
    with pytest.raises(CertificateError, match="does not trust"):
        Session.connect(replace(server.endpoint, fingerprint_sha256=None), asked)
    assert asked.times == 0


def test_a_lost_session_is_replaced_and_the_answer_is_the_same(server: Vcsim) -> None:
    """An administrator ends our session; the next call logs in again and nobody notices."""
    asked = Asked()
    with Session.connect(server.endpoint, asked) as session:
        before = list_vms(session)
        terminate(server, session)
        assert list_vms(session) == before
        assert asked.times == 2


def test_many_threads_replace_a_lost_session_once(server: Vcsim) -> None:
    """Eight callers meet the lost session at once; one logs in for all."""
    asked = Asked()
    with Session.connect(server.endpoint, asked) as session:
        before = list_vms(session)[0]
        terminate(server, session)
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: read_vm(session, before.moref), range(24)))
        assert found == {before}
        assert asked.times == 2


def test_keep_alive_renews_a_session_without_a_caller(server: Vcsim) -> None:
    """The background thread notices a lost session by itself."""
    asked = Asked()
    with Session.connect(server.endpoint, asked, keep_alive_s=0.02) as session:
        terminate(server, session)
        assert asked.again.wait(30)


def test_a_clone_is_a_session_of_its_own(server: Vcsim) -> None:
    """Closing the clone leaves the original logged in, and the other way round."""
    asked = Asked()
    with Session.connect(server.endpoint, asked) as session:
        clone = session.clone()
        assert clone.cookie != session.cookie
        clone.close()
        list_vms(session)
        assert asked.times == 2


def test_close_logs_out_once_and_ends_its_thread(server: Vcsim) -> None:
    """A closed session is gone from the server's list; closing again does nothing."""
    session = server.connect()
    key = session.content.sessionManager.currentSession.key
    name = f"vsphere-keep-alive-{server.address}"
    session.close()
    session.close()
    assert name not in {thread.name for thread in threading.enumerate()}
    with server.connect() as other:
        assert key not in {item.key for item in other.content.sessionManager.sessionList}


def test_a_vm_that_does_not_exist_is_gone_not_a_crash(server: Vcsim) -> None:
    """An id of yesterday is an ordinary, typed error."""
    with server.connect() as session, pytest.raises(ObjectGoneError):
        read_vm(session, "vm-999999")


def test_an_esxi_host_by_itself_is_no_vcenter() -> None:
    """The same code lists the VMs of a lone host, below its one datacenter."""
    with vcsim("-esx", "-vm", "1") as host, host.connect() as session:
        assert not session.is_vcenter
        (vm,) = list_vms(session)
        assert vm.datacenter_path == "ha-datacenter"
        assert vm.folder_path == "ha-datacenter/vm"
        assert vm.host_name and not vm.cluster_name
