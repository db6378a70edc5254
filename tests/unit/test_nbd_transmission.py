"""The transmission phase over real sockets: right bytes, right errors, any order, any size."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.errors import StorageError
from appliance.exports.nbd import NbdExport, NbdServer
from nbd_server.protocol import Command, CommandFlag, NbdErrno, TransmissionFlag
from tests.support.nbd_client import NbdClient
from tests.support.nbd_servers import serving
from tests.support.sparse_device import SparseDevice

MIB = 1 << 20
DISK_BYTES = 3 * MIB + 512


class SlowDevice(SparseDevice):
    """Serves nothing at once, so every request takes the way over the worker threads."""

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        return None


class HalfNearDevice(SlowDevice):
    """Of the reads that come together it has every other one near at hand; at times it fails."""

    def read_near_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | None]:
        if len(ranges) % 5 == 4:
            raise StorageError("broken for now")
        return [
            None if number % 2 else self.read_at(offset, length)
            for number, (offset, length) in enumerate(ranges)
        ]


class GatedDevice(SlowDevice):
    """Reads below `gated_below` wait until the gate is opened."""

    gated_below = 0

    def __init__(self, size_bytes: int, *, content: bytes = b"") -> None:
        super().__init__(size_bytes, content=content)
        self.gate = threading.Event()
        self.waiting = threading.Semaphore(0)

    def read_at(self, offset: int, length: int) -> bytes:
        if offset < self.gated_below:
            self.waiting.release()
            assert self.gate.wait(20)
        return super().read_at(offset, length)


class BrokenDevice(SparseDevice):
    """Fails in every way a disk can."""

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        raise StorageError("broken")

    def read_at(self, offset: int, length: int) -> bytes:
        if offset < MIB:
            raise StorageError("broken")
        return b"short"

    def flush(self) -> None:
        raise StorageError("broken")


def connect(server: NbdServer, name: str = "disk", *, structured: bool = True) -> NbdClient:
    client = NbdClient(("127.0.0.1", server.port))
    return client.negotiate(name, structured=structured, allocation=structured)


@pytest.fixture(
    scope="module",
    params=[SparseDevice, SlowDevice, HalfNearDevice],
    ids=["hits", "misses", "near"],
)
def server(request: pytest.FixtureRequest) -> Iterator[NbdServer]:
    with serving(NbdExport(name="disk", disk=request.param(DISK_BYTES), read_only=False)) as it:
        yield it


offsets = st.one_of(
    st.integers(0, DISK_BYTES + 512),
    st.sampled_from([0, MIB, DISK_BYTES - 1, DISK_BYTES, 1 << 63]),
)
lengths = st.one_of(
    st.integers(0, 9000), st.sampled_from([65536, 300_000, MIB, MIB + 1, 2 * MIB + 7])
)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            [Command.READ, Command.READ, Command.WRITE, Command.WRITE_ZEROES, Command.TRIM]
        ),
        offsets,
        lengths,
        st.sampled_from([0, 0, CommandFlag.FUA]),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
@settings(max_examples=60, deadline=None)
@given(steps=steps, seed=st.integers(0, 255))
def test_a_disk_over_the_wire_is_a_bytearray(
    server: NbdServer, structured: bool, steps: list[tuple[Command, int, int, int]], seed: int
) -> None:
    """Reads see exactly what was acknowledged before; what lies behind the end changes nothing."""
    model = bytearray(DISK_BYTES)
    with connect(server, structured=structured) as client:
        assert client.request(Command.WRITE_ZEROES, length=DISK_BYTES).errno == 0
        for number, (command, offset, length, flags) in enumerate(steps):
            inside = offset + length <= DISK_BYTES
            payload = bytes([(seed + number) % 256]) * length if command == Command.WRITE else b""
            reply = client.request(
                command, offset=offset, length=length, flags=flags, payload=payload
            )
            if not inside:
                behind = command in (Command.WRITE, Command.WRITE_ZEROES)
                assert reply.errno == (NbdErrno.ENOSPC if behind else NbdErrno.EINVAL)
                continue
            assert reply.errno == 0
            if command == Command.READ:
                assert reply.data == model[offset : offset + length]
            else:
                model[offset : offset + length] = payload or bytes(length)
        for start in range(0, DISK_BYTES, MIB):
            length = min(MIB, DISK_BYTES - start)
            assert client.read(start, length).data == model[start : start + length]


def test_many_requests_in_one_go_are_all_answered_once(server: NbdServer) -> None:
    """A deep queue, sent as fast as it goes; replies may come in any order."""
    content = random.Random(1).randbytes(MIB)
    with connect(server) as client:
        assert client.write(0, content).errno == 0
        spots = [random.Random(cookie).randrange(0, MIB - 4096) for cookie in range(2000)]
        for cookie, spot in enumerate(spots):
            client.send(Command.READ, cookie=cookie, offset=spot, length=4096)
        seen = set()
        for _ in spots:
            reply = client.reply()
            spot = spots[reply.cookie]
            assert reply.data == content[spot : spot + 4096]
            seen.add(reply.cookie)
        assert len(seen) == len(spots)


def test_writes_in_flight_do_not_mix(server: NbdServer) -> None:
    """Payloads of all sizes back to back: each lands where it belongs."""
    sizes = [1, 27, 28, 511, 4096, 70_000, 262_144, MIB, MIB + 3, 5]
    with connect(server) as client:
        offset, spots = 0, []
        for cookie, size in enumerate(sizes):
            payload = bytes([cookie + 1]) * size
            client.send(Command.WRITE, cookie=cookie, offset=offset, length=size, payload=payload)
            spots.append((offset, payload))
            offset += size
        answers = [client.reply() for _ in sizes]
        assert sorted(reply.cookie for reply in answers) == list(range(len(sizes)))
        assert all(reply.errno == 0 for reply in answers)
        for offset, payload in spots:
            assert client.read(offset, len(payload)).data == payload


def test_the_payload_of_a_refused_write_is_skipped(server: NbdServer) -> None:
    """Behind the disk, with illegal flags, or above 32 MiB: the stream stays in step."""
    with connect(server) as client:
        assert client.write(DISK_BYTES - 1, bytes(70_000)).errno == NbdErrno.ENOSPC
        assert client.write(0, bytes(5), flags=CommandFlag.DF).errno == NbdErrno.EINVAL
        client.send(Command.WRITE, offset=0, length=(32 * MIB) + 1)
        client.sock.sendall(bytes(32 * MIB))
        client.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):  # libnbd takes a reply before its last byte for a bug
            client.reply()
        client.sock.settimeout(20)
        client.sock.sendall(b"!")
        assert client.reply().errno == NbdErrno.EINVAL
        assert client.read(0, 512).errno == 0


def test_block_status_shows_holes(server: NbdServer) -> None:
    with connect(server) as client:
        assert client.request(Command.TRIM, length=DISK_BYTES).errno == 0
        assert client.write(MIB, b"x" * 8192).errno == 0
        reply = client.request(Command.BLOCK_STATUS, length=DISK_BYTES)
        assert reply.extents == [(MIB, 3), (8192, 0), (DISK_BYTES - MIB - 8192, 3)]
        one = client.request(
            Command.BLOCK_STATUS, offset=MIB, length=4096, flags=CommandFlag.REQ_ONE
        )
        assert one.extents == [(4096, 0)]
        sparse = client.read(0, MIB + 4096)
        assert sparse.hole_bytes == MIB
        whole = client.read(0, MIB + 4096, flags=CommandFlag.DF)
        assert whole.hole_bytes == 0 and whole.content_chunks == 1 and whole.data == sparse.data


def test_odd_requests_are_harmless(server: NbdServer) -> None:
    with connect(server) as client:
        assert client.read(0, 0).errno == 0
        assert client.write(DISK_BYTES, b"").errno == 0
        assert client.request(Command.WRITE_ZEROES).errno == 0
        assert client.request(Command.TRIM).errno == 0
        assert client.request(Command.CACHE, length=DISK_BYTES).errno == 0
        assert client.request(Command.FLUSH, offset=1 << 63, length=9).errno == 0
        assert client.request(99).errno == NbdErrno.EINVAL
        assert client.request(Command.READ, length=1, flags=1 << 15).errno == NbdErrno.EINVAL
        assert client.request(Command.BLOCK_STATUS, length=0).errno == NbdErrno.EINVAL


def test_a_wrong_magic_ends_the_connection(server: NbdServer) -> None:
    with connect(server) as client:
        client.sock.sendall(bytes(28))
        assert client.closed_by_server()


def test_disconnect_is_answered_by_the_outstanding_replies(server: NbdServer) -> None:
    with connect(server) as client:
        for cookie in range(50):
            client.send(Command.WRITE, cookie=cookie, length=4096, payload=bytes(4096))
        client.send(Command.DISC)
        assert sorted(client.reply().cookie for _ in range(50)) == list(range(50))
        assert client.closed_by_server()


def test_a_client_that_only_stops_sending_still_gets_its_replies(server: NbdServer) -> None:
    with connect(server) as client:
        for cookie in range(20):
            client.send(Command.READ, cookie=cookie, length=MIB)
        client.sock.shutdown(1)
        assert sorted(client.reply().cookie for _ in range(20)) == list(range(20))
        assert client.closed_by_server()


def test_what_one_connection_wrote_the_other_reads(server: NbdServer) -> None:
    """The promise behind CAN_MULTI_CONN."""
    with connect(server) as one, connect(server, structured=False) as two:
        assert one.flags & two.flags & TransmissionFlag.CAN_MULTI_CONN
        for number in range(30):
            assert one.write(number, bytes([number])).errno == 0
            assert two.read(number, 1).data == bytes([number])


def test_misses_are_answered_out_of_order() -> None:
    """A read that hangs on the disk holds up neither its neighbours nor other clients."""
    disk = GatedDevice(MIB, content=b"A" * 512 + b"B" * 512)
    disk.gated_below = 512
    with (
        serving(NbdExport(name="disk", disk=disk)) as server,
        connect(server) as client,
        connect(server) as other,
    ):
        try:
            client.send(Command.READ, cookie=1, offset=0, length=512)
            assert disk.waiting.acquire(timeout=20)
            client.send(Command.READ, cookie=2, offset=512, length=512)
            assert client.reply().cookie == 2
            assert other.read(512, 512).data == b"B" * 512
        finally:
            disk.gate.set()
        assert client.reply().data == b"A" * 512


def test_fua_and_flush_reach_the_disk_before_the_reply() -> None:
    disk = SparseDevice(8 * MIB)
    with (
        serving(NbdExport(name="disk", disk=disk, read_only=False)) as server,
        connect(server) as client,
    ):
        assert client.write(0, b"x").errno == 0 and disk.flushes == 0
        assert client.write(0, b"x", flags=CommandFlag.FUA).errno == 0 and disk.flushes == 1
        assert client.write(0, bytes(3 * MIB), flags=CommandFlag.FUA).errno == 0
        assert disk.flushes == 2
        assert client.request(Command.FLUSH).errno == 0 and disk.flushes == 3
        for command in (Command.WRITE_ZEROES, Command.TRIM):
            assert client.request(command, length=9, flags=CommandFlag.FUA).errno == 0
        assert disk.flushes == 5
        assert client.read(0, 1, flags=CommandFlag.FUA).errno == 0 and disk.flushes == 5


def test_errors_of_the_disk_become_errors_of_the_protocol() -> None:
    """EIO for a broken disk, also for a short read, which must never hang the client."""
    disk = BrokenDevice(8 * MIB)
    full = SparseDevice(8 * MIB, capacity_bytes=MIB)
    with serving(
        NbdExport(name="broken", disk=disk, read_only=False),
        NbdExport(name="full", disk=full, read_only=False),
    ) as server:
        for structured in (True, False):
            with connect(server, "broken", structured=structured) as client:
                assert client.read(0, 512).errno == NbdErrno.EIO
                assert client.read(2 * MIB, 512).errno == NbdErrno.EIO
                assert client.request(Command.FLUSH).errno == NbdErrno.EIO
                assert client.write(0, b"x").errno == 0
                assert client.write(0, b"x", flags=CommandFlag.FUA).errno == NbdErrno.EIO
                wide = client.write(0, bytes(3 * MIB), flags=CommandFlag.FUA)
                assert wide.errno == NbdErrno.EIO
        with connect(server, "full") as client:
            assert client.write(0, bytes(5 * MIB)).errno == NbdErrno.ENOSPC
            assert client.read(0, 512).errno == 0
            assert client.request(Command.TRIM, length=8 * MIB).errno == 0
            assert client.write(0, b"again").errno == 0


@pytest.mark.parametrize("size_bytes", [62 << 40, 1, 513])
def test_disks_of_any_size_are_served_to_the_last_byte(size_bytes: int) -> None:
    with (
        serving(NbdExport(name="disk", disk=SparseDevice(size_bytes), read_only=False)) as server,
        connect(server) as client,
    ):
        assert client.size_bytes == size_bytes
        assert client.write(size_bytes - 1, b"!").errno == 0
        assert client.read(size_bytes - 1, 1).data == b"!"
        assert client.read(size_bytes - 1, 2).errno == NbdErrno.EINVAL
        length = min(size_bytes, 0xFFFFFFFF)
        assert client.request(Command.WRITE_ZEROES, length=length).errno == 0
        status = client.request(Command.BLOCK_STATUS, length=length)
        assert sum(extent for extent, _ in status.extents) == length


class HalfBrokenDevice(SparseDevice):
    """Cannot be read behind its first 20 MiB."""

    def read_at(self, offset: int, length: int) -> bytes:
        if offset >= 20 * MIB:
            raise StorageError("broken")
        return super().read_at(offset, length)


LARGE = random.Random(3).randbytes(12 * MIB) + bytes(8 * MIB) + random.Random(4).randbytes(12 * MIB)


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
def test_the_largest_payloads_go_through(structured: bool) -> None:
    """32 MiB, in one write and in one read, with other requests before and behind it."""
    with (
        serving(NbdExport(name="disk", disk=SlowDevice(40 * MIB), read_only=False)) as server,
        connect(server, structured=structured) as client,
    ):
        assert client.write(5, LARGE).errno == 0
        for _ in range(3):
            expected = {}
            for cookie in range(9):
                length = 32 * MIB if cookie == 4 else 4096
                expected[cookie] = LARGE[cookie : cookie + length]
                client.send(Command.READ, cookie=cookie, offset=5 + cookie, length=length)
            expected[4] += bytes(4)
            answers = {reply.cookie: reply.data for reply in [client.reply() for _ in expected]}
            assert answers == expected
        assert client.read(5, 32 * MIB + 1).errno == NbdErrno.EINVAL
        client.send(Command.READ, offset=5, length=32 * MIB)
        client.send(Command.DISC)
        assert client.reply().data == LARGE
        assert client.closed_by_server()


def test_a_large_read_that_must_not_fragment_is_one_chunk() -> None:
    with (
        serving(NbdExport(name="disk", disk=SparseDevice(40 * MIB, content=LARGE))) as server,
        connect(server) as client,
    ):
        reply = client.read(0, 32 * MIB, flags=CommandFlag.DF)
        assert reply.data == LARGE and reply.content_chunks == 1
        reply = client.read(0, 32 * MIB)
        assert reply.data == LARGE and reply.hole_bytes == 8 * MIB


def test_a_large_read_that_fails_half_way_says_so_or_closes() -> None:
    """A simple reply has announced success already: closing is the only honest end."""
    with serving(NbdExport(name="disk", disk=HalfBrokenDevice(40 * MIB))) as server:
        with connect(server) as client:
            assert client.read(0, 32 * MIB).errno == NbdErrno.EIO
            assert client.read(20 * MIB, 8 * MIB).errno == NbdErrno.EIO
            assert client.read(0, 512).errno == 0
        with connect(server, structured=False) as client:
            assert client.read(20 * MIB, 8 * MIB).errno == NbdErrno.EIO
            with pytest.raises((EOFError, ConnectionError)):
                client.read(0, 32 * MIB)
