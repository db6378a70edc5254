"""Parts of the captured configuration, and what REST answers are believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pyVmomi import vim

from vmware import config_capture, rest
from vmware.config_capture import plain_json
from vmware.errors import LoginError, PrivilegeError, ProtocolError, UnsupportedError
from vmware.rest import Dialect, RestSession
from vmware.tags import Tags


def test_unset_properties_are_left_out_and_types_are_named() -> None:
    """Zero, false and empty text are values; null and empty lists are not."""
    config = vim.vm.ConfigSpec(
        name="", numCPUs=0, memoryHotAddEnabled=False, bootOptions=vim.vm.BootOptions()
    )
    assert plain_json(config) == {
        "_vimtype": "vim.vm.ConfigSpec",
        "name": "",
        "numCPUs": 0,
        "memoryHotAddEnabled": False,
        "bootOptions": {"_vimtype": "vim.vm.BootOptions"},
    }


def test_a_configuration_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a server sends, a recovery point's document stays bounded."""
    monkeypatch.setattr(config_capture, "CONFIG_BYTES_MAX", 1000)
    with pytest.raises(ProtocolError):
        plain_json(vim.vm.ConfigSpec(annotation="x" * 1001))


Answer = Callable[[str, str], tuple[int, Any]]


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], RestSession]:
    """A REST session whose server is a function of method and path."""

    def connect(answer: Answer) -> RestSession:
        def exchange(_self: RestSession, _what: str, method: str, path: str, *_: Any) -> Any:
            status, document = answer(method, path)
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            return status, body

        monkeypatch.setattr(RestSession, "_exchange", exchange)
        monkeypatch.setattr(rest.https, "connect", lambda *_: SimpleNamespace(close=lambda: None))
        session: Any = SimpleNamespace(
            is_vcenter=True,
            endpoint=SimpleNamespace(address="vc", port=443, fingerprint_sha256=None, user="me"),
            ask_password=lambda: "secret",
        )
        return RestSession.connect(session)

    return connect


def test_the_older_dialect_is_taken_where_the_newer_is_not(logged_in: Any) -> None:
    """404 below /api means an older server, not a failure; results are unwrapped there."""

    def answer(method: str, path: str) -> tuple[int, Any]:
        return (404, b"") if path.startswith("/api/") else (200, {"value": f"{method} {path}"})

    session = logged_in(answer)
    assert session.dialect is Dialect.LEGACY
    assert session.get("x", "/cis/y") == "GET /rest/com/vmware/cis/y"
    assert session.act("x", "/cis/y", "go", {}) == "POST /rest/com/vmware/cis/y?~action=go"
    assert session.item("/cis/tag", "urn:a b/c") == "/cis/tag/id:urn:a%20b%2Fc"


def test_neither_dialect_is_an_old_or_foreign_server(logged_in: Any) -> None:
    """Tags are then left out with that reason."""
    with pytest.raises(UnsupportedError):
        logged_in(lambda _method, _path: (404, b""))


def test_a_refused_login_does_not_try_the_other_dialect(logged_in: Any) -> None:
    """A wrong password is not sent twice."""
    paths: list[str] = []

    def answer(_method: str, path: str) -> tuple[int, Any]:
        paths.append(path)
        return 401, b""

    with pytest.raises(LoginError):
        logged_in(answer)
    assert paths == ["/api/session"]


@pytest.mark.parametrize(
    ("status", "document", "kind"),
    [
        (200, b"<html>", ProtocolError),
        (200, b"[" * 100_000, ProtocolError),
        (200, {"a": 1}, ProtocolError),
        (200, [1, 2], ProtocolError),
        (403, b"", PrivilegeError),
    ],
)
def test_answers_that_make_no_sense_are_errors_of_their_own(
    logged_in: Any, status: int, document: Any, kind: type
) -> None:
    """Broken JSON, bottomless JSON, and JSON of another shape."""

    def answer(method: str, path: str) -> tuple[int, Any]:
        return (201, "id") if path == "/api/session" else (status, document)

    with pytest.raises(kind):
        Tags(logged_in(answer)).vms_with("gold")
