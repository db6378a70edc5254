"""Which requests are refused, and with which error number."""

from __future__ import annotations

import pytest

from nbd_server.protocol import MAX_PAYLOAD_BYTES, Command, CommandFlag, NbdErrno
from nbd_server.requests import Request, refusal
from tests.support.nbd_disk import Disk

SIZE_BYTES = 62 << 40
MIB = 1 << 20


def refused(
    command: int,
    offset: int = 0,
    length: int = 512,
    flags: int = 0,
    *,
    structured: bool = True,
    allocation: bool = True,
    disk: Disk | None = None,
) -> NbdErrno | None:
    disk = disk or Disk(SIZE_BYTES)
    request = Request(command, flags, 1, offset, length)
    answer = refusal(request, disk, structured=structured, allocation=allocation)  # type: ignore[arg-type]
    return answer.errno if answer else None


@pytest.mark.parametrize("command", list(Command))
@pytest.mark.parametrize("flags", [0, CommandFlag.FUA])
def test_every_command_is_legal_with_and_without_fua(command: Command, flags: int) -> None:
    """Clients are known to set FUA on commands that write nothing."""
    assert refused(command, SIZE_BYTES - 512, 512, flags) is None


@pytest.mark.parametrize("command", [8, 9, 255, 65535])
def test_unknown_commands_are_invalid(command: int) -> None:
    assert refused(command) == NbdErrno.EINVAL


@pytest.mark.parametrize("command", list(Command))
@pytest.mark.parametrize("flag", [1 << bit for bit in range(1, 16)])
def test_flags_are_legal_only_where_they_mean_something(command: Command, flag: int) -> None:
    meaning = {
        (Command.READ, CommandFlag.DF),
        (Command.WRITE_ZEROES, CommandFlag.NO_HOLE),
        (Command.WRITE_ZEROES, CommandFlag.FAST_ZERO),
        (Command.BLOCK_STATUS, CommandFlag.REQ_ONE),
    }
    expected = None if (command, flag) in meaning else NbdErrno.EINVAL
    assert refused(command, flags=flag) == expected


def test_df_is_illegal_without_structured_replies() -> None:
    assert refused(Command.READ, flags=CommandFlag.DF, structured=False) == NbdErrno.EINVAL


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (Command.READ, NbdErrno.EINVAL),
        (Command.TRIM, NbdErrno.EINVAL),
        (Command.CACHE, NbdErrno.EINVAL),
        (Command.BLOCK_STATUS, NbdErrno.EINVAL),
        (Command.WRITE, NbdErrno.ENOSPC),
        (Command.WRITE_ZEROES, NbdErrno.ENOSPC),
    ],
)
@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE_BYTES, 1), (SIZE_BYTES - 1, 2), (0xFFFFFFFFFFFFFFFF, 0xFFFF), (SIZE_BYTES + 1, MIB)],
)
def test_nothing_reaches_behind_the_disk(
    command: Command, errno: NbdErrno, offset: int, length: int
) -> None:
    assert refused(command, offset, length) == errno


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
def test_a_read_only_export_refuses_writes_but_not_flushes(command: Command) -> None:
    disk = Disk(SIZE_BYTES, read_only=True)
    assert refused(command, disk=disk) == NbdErrno.EPERM
    assert refused(Command.FLUSH, disk=disk) is None


@pytest.mark.parametrize("command", [Command.READ, Command.WRITE])
def test_payloads_end_at_32_mib(command: Command) -> None:
    assert refused(command, length=MAX_PAYLOAD_BYTES) is None
    assert refused(command, length=MAX_PAYLOAD_BYTES + 1) == NbdErrno.EINVAL


@pytest.mark.parametrize("command", [Command.TRIM, Command.WRITE_ZEROES, Command.BLOCK_STATUS])
def test_commands_without_payload_may_cover_4_gib(command: Command) -> None:
    assert refused(command, length=0xFFFFFFFF) is None


def test_block_status_needs_a_context_and_a_length() -> None:
    assert refused(Command.BLOCK_STATUS, allocation=False) == NbdErrno.EINVAL
    assert refused(Command.BLOCK_STATUS, length=0) == NbdErrno.EINVAL


def test_fast_zero_is_refused_where_zeroing_is_slow() -> None:
    """ENOTSUP tells the client to write zeros itself, and is used for nothing else."""
    slow = Disk(SIZE_BYTES)
    slow.fast_zero = False
    fast_zero, no_hole = CommandFlag.FAST_ZERO, CommandFlag.NO_HOLE
    assert refused(Command.WRITE_ZEROES, flags=fast_zero, disk=slow) == NbdErrno.ENOTSUP
    assert refused(Command.WRITE_ZEROES, flags=fast_zero | no_hole) == NbdErrno.ENOTSUP
    assert refused(Command.WRITE_ZEROES, flags=no_hole, disk=slow) is None
