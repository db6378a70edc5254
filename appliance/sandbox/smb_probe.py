"""`smb` or `smb:PORT`: the guest's file server negotiates SMB 2 or 3.

Source: [MS-SMB2] 2.1 (direct TCP), 2.2.1.2 (header), 2.2.3 and 2.2.4 (negotiate).
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass

from appliance.sandbox.guest_connection import GuestConnection, NoAnswerError, talk_to_guest
from appliance.sandbox.probe_contract import Attempt, ProbedMachine

SMB_PORT = 445
_MESSAGE_BYTES_MAX = 64 * 1024
# ProtocolId, StructureSize, CreditCharge, Status, Command, Credits, Flags, NextCommand, MessageId,
# Reserved, TreeId, SessionId, Signature
_HEADER = struct.Struct("<4sHHIHHIIQIIQ16s")
assert _HEADER.size == 64
# StructureSize, DialectCount, SecurityMode, Reserved, Capabilities, ClientGuid, ClientStartTime
_REQUEST = struct.Struct("<HHHHI16sQ")
assert _REQUEST.size == 36
_RESPONSE_START = struct.Struct("<HHHH")  # StructureSize, SecurityMode, DialectRevision, contexts
_PROTOCOL_ID, _NEGOTIATE, _IS_RESPONSE = b"\xfeSMB", 0, 1
_SIGNING_ENABLED = 1
_DIALECTS = {0x0202: "2.0.2", 0x0210: "2.1", 0x0300: "3.0", 0x0302: "3.0.2"}


@dataclass(frozen=True, slots=True)
class SmbProbe:
    guest_port: int = SMB_PORT

    @property
    def text(self) -> str:
        return f"smb:{self.guest_port}"

    def attempt(self, machine: ProbedMachine) -> Attempt:
        return talk_to_guest(machine, self.guest_port, self._talk)

    def _talk(self, connection: GuestConnection) -> Attempt:
        header = _HEADER.pack(_PROTOCOL_ID, 64, 0, 0, _NEGOTIATE, 1, 0, 0, 0, 0, 0, 0, bytes(16))
        request = _REQUEST.pack(
            36, len(_DIALECTS), _SIGNING_ENABLED, 0, 0, secrets.token_bytes(16), 0
        )
        message = header + request + struct.pack(f"<{len(_DIALECTS)}H", *_DIALECTS)
        connection.send(struct.pack(">I", len(message)) + message)
        (length,) = struct.unpack(">I", connection.read(4))  # a zero byte, then 24 bits
        if not _HEADER.size + _RESPONSE_START.size <= length <= _MESSAGE_BYTES_MAX:
            raise NoAnswerError(f"a message of {length} bytes")
        fields = _HEADER.unpack(connection.read(_HEADER.size))
        protocol, status, command, flags = fields[0], fields[3], fields[4], fields[6]
        if protocol != _PROTOCOL_ID or command != _NEGOTIATE or not flags & _IS_RESPONSE:
            raise NoAnswerError("not an SMB 2 negotiation")
        if status:
            return Attempt(False, f"negotiation refused with status {status:#010x}")
        _, _, dialect, _ = _RESPONSE_START.unpack(connection.read(_RESPONSE_START.size))
        if dialect not in _DIALECTS:
            raise NoAnswerError(f"dialect {dialect:#06x}, which was not offered")
        return Attempt(True, f"SMB {_DIALECTS[dialect]}")
