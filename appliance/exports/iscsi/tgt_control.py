"""tgtd's control socket: targets, LUNs, accounts and who may log in.

Spoken here instead of through `tgtadm`, which takes passwords as arguments, where every process of
the machine can read them. One request per connection: a fixed structure of the machine's own byte
order, then parameters as text with a NUL; the reply is an error number and a length.

Thread model: any thread; each call opens a connection of its own and blocks.
Source: tgt 1.0.85, as its own tgtadm speaks; the structure is `tgtadm_req` of its public header.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum
from pathlib import Path

from appliance.base.errors import ExternalProgramError
from appliance.exports.iscsi.target import (
    PRODUCT,
    REVISION,
    VENDOR,
    Chap,
    Lun,
    is_initiator_name,
)

# mode, operation, driver, length, target, session, LUN, connection, host, type, direction, pack,
# force
_REQUEST = struct.Struct("=II64sIiQQIIIIII")
assert _REQUEST.size == 120
_REPLY = struct.Struct("=II")
_NO_LUN = (1 << 64) - 1
_ANY_TARGET = -1
_TIMEOUT_S = 20.0
_REPLY_MOST = 1 << 20
_DRIVER = b"iscsi"


class _Mode(IntEnum):
    TARGET = 1
    LUN = 2
    PORTAL = 3
    ACCOUNT = 7


class _Operation(IntEnum):
    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UPDATE = 5


_ERRORS = {
    2: "out of memory",
    4: "no such target",
    5: "no such LUN",
    9: "the target exists already",
    10: "the LUN exists already",
    14: "the account exists already",
    15: "no such account",
    17: "invalid request, or the file of a LUN cannot be opened",
    19: "the target is in use",
    20: "the LUN is in use",
    23: "unknown parameter",
}


class TgtError(ExternalProgramError):
    """tgtd, the iSCSI target that Holdfast runs, refused a request or does not answer."""

    code = "export.iscsi-target"


class TgtControl:
    def __init__(self, socket_path: Path) -> None:
        """`socket_path`: as tgtd names it, which adds ".0" to what it is told."""
        self._path = socket_path

    def answers(self) -> bool:
        try:
            self._ask(_Mode.TARGET, _Operation.SHOW)
        except TgtError:
            return False
        return True

    def listens(self, port: int) -> bool:
        """Whether it got the port that it was to listen on. Raises TgtError."""
        return f":{port}," in self._ask(_Mode.PORTAL, _Operation.SHOW)

    def shows(self) -> str:
        """What tgtd knows, as text; without passwords. Raises TgtError."""
        return self._ask(_Mode.TARGET, _Operation.SHOW)

    def add_target(self, number: int, name: str) -> None:
        """Raises TgtError."""
        self._ask(_Mode.TARGET, _Operation.NEW, number, text=f"targetname={name}")

    def add_lun(self, number: int, lun: Lun, file: Path) -> None:
        """Raises TgtError. The path has neither comma nor space, or tgtd would cut it there."""
        new = f"path={file},bstype=rdwr"
        self._ask(_Mode.LUN, _Operation.NEW, number, lun=lun.number, text=new)
        settings = {
            "vendor_id": VENDOR,
            "product_id": PRODUCT,
            "product_rev": REVISION,
            "scsi_sn": lun.identity,
            "scsi_id": f"{VENDOR}-{lun.identity}",
        }
        if lun.read_only:
            settings["readonly"] = "1"
        text = "targetOps " + "".join(f"{name}={value}," for name, value in settings.items())
        self._ask(_Mode.LUN, _Operation.UPDATE, number, lun=lun.number, text=text)

    def admit(self, number: int, initiator: str) -> None:
        """By iSCSI name, or by address or network. Raises TgtError."""
        kind = "name" if is_initiator_name(initiator) else "address"
        self._ask(_Mode.TARGET, _Operation.BIND, number, text=f"initiator-{kind}={initiator}")

    def add_account(self, number: int, chap: Chap) -> None:
        """Ask whoever logs in to the target for this. Raises TgtError."""
        password = chap.secret.reveal().decode()
        text = f"user={chap.user},password={password}"
        self._ask(_Mode.ACCOUNT, _Operation.NEW, text=text)
        self._ask(_Mode.ACCOUNT, _Operation.BIND, number, text=f"user={chap.user}")

    def remove_account(self, user: str) -> None:
        """Raises TgtError."""
        self._ask(_Mode.ACCOUNT, _Operation.DELETE, text=f"user={user}")

    def remove_target(self, number: int) -> None:
        """End its sessions and close its files. Raises TgtError."""
        self._ask(_Mode.TARGET, _Operation.DELETE, number, force=True)

    def _ask(
        self,
        mode: _Mode,
        operation: _Operation,
        target: int = _ANY_TARGET,
        *,
        lun: int = _NO_LUN,
        text: str = "",
        force: bool = False,
    ) -> str:
        body = text.encode() + b"\0" if text else b""
        length = _REQUEST.size + len(body)
        request = _REQUEST.pack(
            mode, operation, _DRIVER, length, target, 0, lun, 0, 0, 0, 0, 0, int(force)
        )
        what = f"{operation.name.lower()} {mode.name.lower()}"
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_TIMEOUT_S)
                connection.connect(str(self._path))
                connection.sendall(request + body)
                error, reply_length = _REPLY.unpack(_exactly(connection, _REPLY.size))
                shown = _exactly(connection, max(0, reply_length - _REPLY.size))
        except OSError as failure:
            raise TgtError(f"{what}: tgtd does not answer: {failure}") from failure
        if error:
            raise TgtError(f"{what}: {_ERRORS.get(error, f'error {error}')}")
        return shown.decode("utf-8", "replace").rstrip("\0")


def _exactly(connection: socket.socket, length: int) -> bytes:
    """Raises OSError: tgtd ended the connection, or says more than it can have to say."""
    if length > _REPLY_MOST:
        raise OSError(f"a reply of {length} bytes")
    received = bytearray()
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            raise OSError("connection closed")
        received += part
    return bytes(received)
