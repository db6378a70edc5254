"""`mysql`, `postgres`, `mssql` (each with `:PORT`): the database answers as one that takes logins.

Nobody logs in: MySQL greets first, PostgreSQL answers a start-up message with a request for proof
or a refusal that says it is up, SQL Server answers a pre-login.
Sources: MySQL internals, protocol handshake v10; PostgreSQL 16 manual, 55.2 and 55.7, error codes
in appendix A; [MS-TDS] 2.2.3.1 (packet header), 2.2.6.5 (PRELOGIN).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from appliance.sandbox.guest_connection import (
    GuestConnection,
    NoAnswerError,
    printable,
    talk_to_guest,
)
from appliance.sandbox.probe_contract import Attempt, ProbedMachine

_MESSAGE_BYTES_MAX = 64 * 1024
_MYSQL_PROTOCOL, _MYSQL_ERROR = 10, 0xFF
_POSTGRES_PROTOCOL = 3 << 16
_POSTGRES_NOT_YET = b"57P03"  # cannot_connect_now: starting up or shutting down
_TDS_HEADER = struct.Struct(">BBHHBB")  # type, status, length, SPID, packet id, window
assert _TDS_HEADER.size == 8
_TDS_PRELOGIN, _TDS_RESPONSE, _TDS_END_OF_MESSAGE = 0x12, 0x04, 0x01
_TDS_OPTION = struct.Struct(">BHH")  # token, offset, length
_TDS_VERSION, _TDS_ENCRYPTION, _TDS_TERMINATOR = 0, 1, 0xFF


class Database(StrEnum):
    MYSQL = "mysql"
    POSTGRES = "postgres"
    MSSQL = "mssql"


PORTS = {Database.MYSQL: 3306, Database.POSTGRES: 5432, Database.MSSQL: 1433}


@dataclass(frozen=True, slots=True)
class SqlProbe:
    database: Database
    guest_port: int

    @property
    def text(self) -> str:
        return f"{self.database}:{self.guest_port}"

    def attempt(self, machine: ProbedMachine) -> Attempt:
        return talk_to_guest(machine, self.guest_port, self._talk)

    def _talk(self, connection: GuestConnection) -> Attempt:
        match self.database:
            case Database.MYSQL:
                return _mysql(connection)
            case Database.POSTGRES:
                return _postgres(connection)
            case Database.MSSQL:
                return _mssql(connection)
            case _:
                assert_never(self.database)


def _mysql(connection: GuestConnection) -> Attempt:
    length = int.from_bytes(connection.read(4)[:3], "little")  # and a sequence number
    if not 2 <= length <= _MESSAGE_BYTES_MAX:
        raise NoAnswerError(f"a greeting of {length} bytes")
    greeting = connection.read(length)
    if greeting[0] == _MYSQL_ERROR:
        return Attempt(False, f"refused: {printable(greeting[3:])}")
    version, end, _ = greeting[1:].partition(b"\0")
    if greeting[0] != _MYSQL_PROTOCOL or not end:
        raise NoAnswerError("not a greeting of MySQL")
    return Attempt(True, f"MySQL {printable(version)}")


def _postgres(connection: GuestConnection) -> Attempt:
    words = b"user\0holdfast\0database\0postgres\0\0"
    connection.send(struct.pack(">II", 8 + len(words), _POSTGRES_PROTOCOL) + words)
    kind = connection.read(1)
    length = int.from_bytes(connection.read(4), "big") - 4
    if kind not in (b"R", b"E") or not 4 <= length <= _MESSAGE_BYTES_MAX:
        raise NoAnswerError("not an answer of PostgreSQL")
    body = connection.read(length)
    if kind == b"R":
        return Attempt(True, "PostgreSQL asks for a login")
    fields = {field[:1]: field[1:] for field in body.split(b"\0")}
    code = fields.get(b"C", b"")
    if len(code) != 5:
        raise NoAnswerError("not an answer of PostgreSQL")
    text = f"PostgreSQL says {printable(code)} {printable(fields.get(b'M', b''))}"
    return Attempt(code != _POSTGRES_NOT_YET, text)


def _mssql(connection: GuestConnection) -> Attempt:
    options = [(_TDS_VERSION, bytes(6)), (_TDS_ENCRYPTION, b"\2")]  # 2: not supported by us
    place = _TDS_OPTION.size * len(options) + 1
    table = b""
    for token, value in options:
        table += _TDS_OPTION.pack(token, place, len(value))
        place += len(value)
    body = table + bytes((_TDS_TERMINATOR,)) + b"".join(value for _, value in options)
    header = _TDS_HEADER.pack(
        _TDS_PRELOGIN, _TDS_END_OF_MESSAGE, _TDS_HEADER.size + len(body), 0, 0, 0
    )
    connection.send(header + body)
    kind, _, length, *_ = _TDS_HEADER.unpack(connection.read(_TDS_HEADER.size))
    if kind != _TDS_RESPONSE or not _TDS_HEADER.size + _TDS_OPTION.size <= length:
        raise NoAnswerError("not an answer of SQL Server")
    answer = connection.read(length - _TDS_HEADER.size)
    token, offset, size = _TDS_OPTION.unpack_from(answer)
    version = answer[offset : offset + size]
    if token != _TDS_VERSION or len(version) < 4:
        raise NoAnswerError("an answer without a version")
    major, minor, build = struct.unpack_from(">BBH", version)
    return Attempt(True, f"SQL Server {major}.{minor}.{build}")
