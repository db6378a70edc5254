"""The client of Hyper-V hosts over a real WinRM conversation, with what can go wrong in one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperv.errors import (
    AccessError,
    CertificateError,
    DeadlineError,
    GoneError,
    HypervError,
    LoginError,
    ProtocolError,
    ScriptError,
    SessionLostError,
    UnreachableError,
)
from hyperv.pinned_http import check_fingerprint, shown_fingerprint
from hyperv.script_types import JobState, Removed
from hyperv.winrm_session import Endpoint, Login, Scheme, WinrmSession
from lab.faults import FaultName, FaultSwitches
from tests.support.scripted_host import Refusal, ScriptedHost, scripted_host, session_with

MANY = 400_000  # characters: several envelopes


def removed(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"removed": len(parameters["marker"])}


@pytest.fixture
def switches() -> FaultSwitches:
    return FaultSwitches()


@pytest.fixture
def host(tmp_path: Path, switches: FaultSwitches) -> Iterator[ScriptedHost]:
    with scripted_host(tmp_path, {"unshare_folder": removed}, switches) as started:
        yield started


@pytest.mark.parametrize(
    ("login", "scheme"),
    [
        (Login.NTLM, Scheme.HTTPS),
        (Login.NTLM, Scheme.HTTP),
        (Login.BASIC, Scheme.HTTPS),
        (Login.CREDSSP, Scheme.HTTPS),
        (Login.CREDSSP, Scheme.HTTP),
    ],
)
def test_a_script_is_called_over_every_login(
    host: ScriptedHost, login: Login, scheme: Scheme
) -> None:
    """Pinned TLS or sealed HTTP; the parameters arrive as they are, long ones in pieces."""
    text = "ä'`$(x)\"" * (MANY // 8)
    with session_with(host, login=login, scheme=scheme) as session:
        for _ in range(2):
            found = session.call("unshare_folder", {"marker": text}, Removed)
            assert found.removed == len(text)
        assert host.server is not None and host.server.winrs.shell_count == 1
    assert host.server.winrs.shell_count == 0


def test_no_credential_is_sent_to_another_certificate(host: ScriptedHost) -> None:
    """The pin is compared before the first request, and the error says what happened."""
    with (
        session_with(host, login=Login.BASIC, fingerprint="AB" * 32) as session,
        pytest.raises(CertificateError),
    ):
        session.call("unshare_folder", {"marker": "x"}, Removed)
    assert host.calls == []


def test_a_certificate_that_nobody_vouches_for_is_refused_without_a_pin(host: ScriptedHost) -> None:
    """Without a pin the system's authorities decide."""
    with session_with(host, fingerprint="") as session, pytest.raises(CertificateError):
        session.call("unshare_folder", {"marker": "x"}, Removed)


def test_the_fingerprint_that_a_host_shows_can_be_accepted(host: ScriptedHost) -> None:
    """And another one cannot."""
    assert host.server is not None
    port = host.server.https_port
    found = shown_fingerprint("127.0.0.1", port)
    assert found == host.server.fingerprint
    assert check_fingerprint("127.0.0.1", port, found.replace(":", "").lower()) == found
    with pytest.raises(CertificateError):
        check_fingerprint("127.0.0.1", port, "AB" * 32)


def test_basic_over_plain_http_is_refused() -> None:
    """It would send the password readable."""
    with pytest.raises(LoginError):
        Endpoint(
            address="hv1",
            port=5985,
            user="u",
            login=Login.BASIC,
            scheme=Scheme.HTTP,
            password=lambda: "p",
        )


@pytest.mark.parametrize(
    ("login", "scheme"),
    [(Login.NTLM, Scheme.HTTPS), (Login.CREDSSP, Scheme.HTTPS), (Login.CREDSSP, Scheme.HTTP)],
)
def test_a_password_is_in_no_repr_and_in_no_error(
    host: ScriptedHost, login: Login, scheme: Scheme
) -> None:
    """A refused login says so, without the password."""
    with session_with(host, login=login, scheme=scheme, password="wrong-secret") as session:
        assert "wrong-secret" not in repr(session.endpoint)
        with pytest.raises(LoginError) as caught:
            session.call("unshare_folder", {"marker": "x"}, Removed)
    assert "wrong-secret" not in str(caught.value)


def test_an_ipv6_address_becomes_a_url() -> None:
    """With brackets."""
    endpoint = Endpoint(address="fe80::1", port=5986, user="u", password=lambda: "p")
    assert endpoint.url == "https://[fe80::1]:5986/wsman"


@pytest.mark.parametrize(
    ("refusal", "kind", "reason"),
    [
        (Refusal("vm-not-found"), GoneError, "vm-not-found"),
        (Refusal("not-ours"), ScriptError, "not-ours"),
        (Refusal("wmi-method", wmi_return=32769), AccessError, "wmi-method"),
        (Refusal("wmi-method", wmi_return=32773), ScriptError, "wmi-method"),
        (Refusal("", "the pipeline broke"), ScriptError, ""),
    ],
)
def test_what_a_script_says_becomes_a_typed_error(
    host: ScriptedHost, refusal: Refusal, kind: type[ScriptError], reason: str
) -> None:
    """With the script's own code and the method's return value; the session goes on."""

    def fails(_parameters: dict[str, Any]) -> dict[str, Any]:
        raise refusal

    host.handlers["job_state"] = fails
    with session_with(host) as session:
        with pytest.raises(kind) as caught:
            session.call("job_state", {"job_id": "1"}, JobState)
        assert (caught.value.reason, caught.value.wmi_return) == (reason, refusal.wmi_return)
        assert session.call("unshare_folder", {"marker": "x"}, Removed).removed == 1
    assert host.server is not None and host.server.winrs.shell_count == 0


@pytest.mark.parametrize(
    "value", [{"removed": "1"}, {"removed": 1, "more": 2}, {}, [], {"removed": True}]
)
def test_an_answer_of_another_shape_is_not_believed(host: ScriptedHost, value: Any) -> None:
    """A key too many, one too few, another type: ProtocolError that names the place."""
    host.handlers["unshare_folder"] = lambda _parameters: value
    with session_with(host) as session, pytest.raises(ProtocolError, match="unshare_folder"):
        session.call("unshare_folder", {"marker": "x"}, Removed)


def test_a_lost_shell_is_made_anew_and_the_call_repeated(
    host: ScriptedHost, switches: FaultSwitches
) -> None:
    """For a script that may be repeated."""
    with session_with(host) as session:
        session.call("unshare_folder", {"marker": "x"}, Removed)
        switches.arm(FaultName.SESSION_DROP, times=1)
        assert session.call("unshare_folder", {"marker": "xy"}, Removed).removed == 2


def test_a_shell_that_was_gone_before_a_call_began_is_no_reason_not_to_make_something(
    host: ScriptedHost, switches: FaultSwitches
) -> None:
    """The host drops shells that are idle for two hours; the call is made in a new one, once."""
    host.handlers["create_checkpoint"] = removed
    with session_with(host) as session:
        session.call("unshare_folder", {"marker": "x"}, Removed)
        switches.arm(FaultName.SESSION_DROP, times=1)
        assert session.call("create_checkpoint", {"marker": "x"}, Removed).removed == 1
        assert switches.fired(FaultName.SESSION_DROP)
    assert host.calls.count("create_checkpoint") == 1


@pytest.mark.parametrize("fault", [FaultName.SESSION_DROP, FaultName.LOST_TASK_REPLY])
def test_a_call_whose_end_is_not_known_is_not_repeated_when_it_makes_something(
    host: ScriptedHost, switches: FaultSwitches, fault: FaultName
) -> None:
    """A checkpoint that may have been made is not made twice."""

    def create(_parameters: dict[str, Any]) -> dict[str, Any]:
        switches.arm(fault, times=1)
        return {"removed": 1}

    host.handlers["create_checkpoint"] = create
    with session_with(host) as session:
        with pytest.raises(SessionLostError):
            session.call("create_checkpoint", {}, Removed)
        host.handlers["remove_checkpoint"] = removed
        assert session.call("remove_checkpoint", {"marker": "x"}, Removed).removed == 1
    assert host.calls.count("create_checkpoint") == 1


def test_a_deadline_ends_a_call_and_its_command(host: ScriptedHost) -> None:
    """The command is terminated at the host, and no shell stays."""
    assert host.server is not None
    host.handlers["unshare_folder"] = lambda _p: {"removed": 1}
    shell = WinrmSession(host.endpoint(), clock_s=iter(range(0, 100_000, 1000)).__next__)
    with pytest.raises(DeadlineError):
        shell.call("unshare_folder", {"marker": "x"}, Removed, deadline_s=1)
    assert host.server.winrs.shell_count == 0


def test_a_cancel_ends_a_call(host: ScriptedHost) -> None:
    """What the check raises comes out, and no shell stays."""

    class Stop(Exception):
        pass

    def check() -> None:
        raise Stop

    assert host.server is not None
    shell = WinrmSession(host.endpoint())
    with pytest.raises(Stop):
        shell.call("unshare_folder", {"marker": "x"}, Removed, deadline_s=60, check=check)
    assert host.server.winrs.shell_count == 0


def test_a_host_that_is_not_there_is_unreachable(host: ScriptedHost) -> None:
    """After the tries, with a typed and retryable error."""
    with session_with(host) as session:
        assert host.server is not None
        host.server.close()
        with pytest.raises(UnreachableError) as caught:
            session.call("unshare_folder", {"marker": "x"}, Removed)
    assert isinstance(caught.value, HypervError) and caught.value.retryable
