"""tgtd's control socket: what it refuses or does not say right becomes a named error."""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.exports.iscsi.target import Chap, IscsiTarget, Lun, new_secret, target_name
from appliance.exports.iscsi.tgt_control import TgtControl, TgtError
from tests.support.memory_device import MemoryDevice


@contextmanager
def answering(reply: bytes) -> Iterator[tuple[Path, list[bytes]]]:
    """A socket that answers everything with `reply`, and what it was asked."""
    asked: list[bytes] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = Path(folder) / "s"
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(4096))
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path, asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_password_goes_over_the_socket_and_into_no_message() -> None:
    """tgtd gets it; the error that tgtd answers with does not hold it."""
    chap = Chap(user="hv1", secret=Secret.of_text("not-for-others"))
    with (
        answering(struct.pack("=II", 14, 8)) as (path, asked),
        pytest.raises(TgtError, match="exists already") as caught,
    ):
        TgtControl(path).add_account(7, chap)
    assert asked[0].endswith(b"user=hv1,password=not-for-others\0")
    assert "not-for-others" not in repr(caught.value) + repr(chap)


@pytest.mark.parametrize(
    "reply", [b"", b"\0\0\0", struct.pack("=II", 0, 100), struct.pack("=II", 0, 1 << 31)]
)
def test_an_answer_that_is_cut_off_or_too_long_is_refused(reply: bytes) -> None:
    """No endless wait, and no memory for what cannot be."""
    with answering(reply) as (path, _), pytest.raises(TgtError, match="does not answer"):
        TgtControl(path).shows()


def test_without_a_tgtd_nothing_answers(tmp_path: Path) -> None:
    """The look that a start waits with is no error."""
    assert not TgtControl(tmp_path / "s").answers()


@pytest.mark.parametrize("password", ["short", "a" * 17, "with a space!", "with,a,comma", "ä" * 8])
def test_passwords_that_an_initiator_would_not_take_are_refused(password: str) -> None:
    """12 to 16 printable characters, for Microsoft's initiator; no comma, for tgt."""
    with pytest.raises(UsageError, match="CHAP"):
        Chap(user="u", secret=Secret.of_text(password))


def test_a_new_password_is_one_that_is_taken_and_never_the_same() -> None:
    """Made where none was given."""
    secrets = {Chap(user="u", secret=new_secret()).secret.reveal() for _ in range(20)}
    assert len(secrets) == 20


@pytest.mark.parametrize("initiator", ["", "hv1", "10.0.0.0/33", "10.0.0.1/24", "iqn.x", "iqn."])
def test_initiators_that_are_neither_names_nor_networks_are_refused(initiator: str) -> None:
    """tgt would take such a rule and let nobody in, or everybody."""
    lun = Lun(number=1, identity="x", device=MemoryDevice(b""))
    with pytest.raises(UsageError, match="initiator"):
        IscsiTarget(
            name=target_name("a"),
            luns=(lun,),
            chap=Chap(user="u", secret=new_secret()),
            initiators=(initiator,),
        )


def test_the_number_of_a_target_depends_on_its_name_alone() -> None:
    """It stands in identifiers that a host knows its disk by."""
    lun = Lun(number=1, identity="x", device=MemoryDevice(b""))

    def number(name: str) -> int:
        return IscsiTarget(
            name=target_name(name),
            luns=(lun,),
            chap=Chap(user="u", secret=new_secret()),
            initiators=("127.0.0.1",),
        ).number

    assert number("a") == number("a") != number("b")
    assert 0 < number("a") < 1 << 31
