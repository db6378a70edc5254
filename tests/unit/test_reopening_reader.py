"""A reader that opens its transport again when it breaks, and goes on where it was."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from appliance.base.backoff import Backoff
from appliance.base.errors import CancelledError
from appliance.base.run_context import CancelToken
from appliance.blocks.extents import Extent
from appliance.sources.errors import NotADiskError, SourceReadError
from appliance.sources.frozen import TransferReport
from appliance.sources.reopening_reader import OpenTransport, ReopeningReader
from tests.support.memory_reader import MemoryReader

DATA = bytes(range(256)) * 64
AT_ONCE = Backoff(attempts=3, first_s=0)


class _Breaking(MemoryReader):
    def __init__(self, reads: int) -> None:
        super().__init__(DATA)
        self.reads = reads
        self.closed = False

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads -= 1
        if self.reads < 0 or self.closed:
            raise SourceReadError("broken pipe")
        return super().read_at(offset, length)

    def close(self) -> None:
        self.closed = True


class _Opens:
    def __init__(self, reads: Sequence[int]) -> None:
        self.readers = [_Breaking(count) for count in reads]
        self.given: list[_Breaking] = []

    def __call__(self, planned: Sequence[Extent] | None) -> OpenTransport:
        reader = self.readers[len(self.given)]
        self.given.append(reader)
        return OpenTransport(reader=reader, report=TransferReport(transport=f"t{len(self.given)}"))


def _reader(opens: _Opens, cancel: CancelToken | None = None) -> ReopeningReader:
    return ReopeningReader("disk", len(DATA), opens, cancel or CancelToken(), backoff=AT_ONCE)


def test_a_broken_transport_is_opened_again_and_the_read_repeated() -> None:
    """Every byte comes, each broken connection is closed, and the report says what happened."""
    opens = _Opens([3, 2, 99])
    reader = _reader(opens)
    reader.begin(None)
    assert b"".join(reader.read_at(at, 1024) for at in range(0, len(DATA), 1024)) == DATA
    report = reader.report()
    assert (report.transport, report.reopened) == ("t3", 2)
    assert {reason.code for reason in report.reasons} == {"transfer.retried"}
    assert [each.closed for each in opens.given] == [True, True, False]
    reader.close()
    assert opens.given[-1].closed


def test_threads_that_meet_the_same_break_open_once() -> None:
    """One opens, the others wait and use what it opened."""
    opens = _Opens([0, 1000])
    reader = _reader(opens)
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(reader.read_at(0, 512))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [DATA[:512]] * 8
    assert len(opens.given) == 2


def test_a_transport_that_never_holds_fails_in_the_end() -> None:
    """The retries are bounded."""
    with pytest.raises(SourceReadError):
        _reader(_Opens([0] * 20)).read_at(0, 512)


def test_an_error_that_will_not_pass_is_not_repeated() -> None:
    """And nothing is opened a second time for it."""
    opens = _Opens([9])
    reader = _reader(opens)
    reader.begin(None)

    def fail(offset: int, length: int) -> bytes:
        raise NotADiskError("gone for good")

    opens.given[0].read_at = fail  # type: ignore[method-assign]
    with pytest.raises(NotADiskError):
        reader.read_at(0, 512)
    assert len(opens.given) == 1


def test_a_read_whose_connection_another_thread_closed_is_repeated() -> None:
    """One thread meets the break and opens anew; the other's read fails because of that, for a
    reason that is none of its own."""
    opens = _Opens([9, 9])
    reader = _reader(opens)
    reader.begin(None)
    old = opens.given[0]
    inside, closed = threading.Event(), threading.Event()
    broken = iter([True])

    def read_at(offset: int, length: int) -> bytes:
        if offset == 0 and next(broken, False):
            assert inside.wait(30)
            raise SourceReadError("broken pipe")
        inside.set()
        assert closed.wait(30)
        raise NotADiskError("the disk is closed")

    def close() -> None:
        closed.set()

    old.read_at, old.close = read_at, close  # type: ignore[method-assign]
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda at=at: results.append(reader.read_at(at, 512)))  # type: ignore[misc]
        for at in (0, 1024)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == sorted([DATA[:512], DATA[1024:1536]])


def test_a_disk_of_another_size_is_refused() -> None:
    """The transport must show the disk that the snapshot describes."""
    reader = ReopeningReader("disk", 512, _Opens([9] * 9), CancelToken(), backoff=AT_ONCE)
    with pytest.raises(SourceReadError, match="by its snapshot"):
        reader.begin(None)


def test_cancelling_ends_the_retries() -> None:
    """A cancelled run does not wait for a transport."""
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        _reader(_Opens([0] * 9), cancel).read_at(0, 512)
