"""Reads the planned ranges of a disk ahead, in large pieces, on a few threads.

Data path: `RangeClient.fetch` -> buffers of the window -> the memory of whoever reads. Readers ask
for some MiB at a time, several at once and only roughly in order; they find their bytes here as
soon as those have come, while the rest of the piece is still on its way. A read that the plan does
not know, or that comes too late, is fetched by itself.

Invariants: no byte is handed out before it came; buffers never hold more than `window_bytes`; a
piece leaves the window when its planned bytes were read, or when a read beyond the window needs
the room (so its reader skipped it). No read waits for another reader.
Thread model: `read_into` from any number of threads, `close` from any, waking them. The fetching
threads start with the first read and are joined by `close`.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vmware.errors import CancelledError
from vmware.transports.http_range import OnProgress
from vmware.transports.read_plan import Piece, ReadPlan

Fetch = Callable[[int, memoryview, OnProgress], None]
"""Fill the buffer with the disk from that offset, telling how many bytes of it are valid."""

_MOST_BLOCKS = 64
_MOST_SPARE = 2


def _no_progress(_count: int) -> None: ...


@dataclass(slots=True, eq=False)
class _Block:
    """A piece that is being fetched, or was."""

    piece: Piece
    buffer: bytearray  # at least as long as the piece
    filled: int = 0  # bytes that have come
    taken: int = 0  # bytes that were handed out
    readers: int = 0  # threads that look at it now
    fetching: bool = True
    failure: Exception | None = None

    @property
    def idle(self) -> bool:
        return not self.fetching and not self.readers


class ReadWindow:
    """Args: `window_bytes`: at least a piece of the plan; `threads`: that fetch."""

    def __init__(self, plan: ReadPlan, fetch: Fetch, *, window_bytes: int, threads: int) -> None:
        if window_bytes < plan.piece_bytes:
            raise ValueError(f"a window of {window_bytes} bytes")
        self._plan = plan
        self._fetch = fetch
        self._window_bytes = window_bytes
        self._changed = threading.Condition()  # guards all below
        self._blocks: list[_Block] = []  # by offset
        self._queue: deque[_Block] = deque()  # not begun yet, by offset
        self._spare: list[bytearray] = []
        self._held_bytes = 0
        self._cursor: int | None = None  # what lies before was begun, or is left to single reads
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"fetch-{number}", daemon=True)
            for number in range(threads)
        ]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the disk from `offset`; blocks.

        Raises:
            VsphereError: what `fetch` raised for a byte of it.
            CancelledError: `close` was called.
        """
        while buffer:
            with self._changed:
                self._start(offset)
                block = self._block_for(offset)
                if block is not None:
                    block.readers += 1
                else:
                    count = min(len(buffer), self._to_next_block(offset))
            if block is None:
                self._fetch(offset, buffer[:count], _no_progress)
            else:
                count = self._take(block, offset, buffer)
            offset += count
            buffer = buffer[count:]

    def close(self) -> None:
        """Wake and end everything; idempotent. `fetch` must fail soon for those under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._blocks.clear()
        self._spare.clear()

    # Readers

    def _take(self, block: _Block, offset: int, buffer: memoryview) -> int:
        """Copy what has come of the block from `offset`, at least a byte; return how much."""
        at = offset - block.piece.offset
        count = 0
        try:
            with self._changed:
                while block.filled <= at and block.failure is None and not self._closed:
                    self._changed.wait()
                if self._closed:
                    raise CancelledError("the disk was closed while it was read")
                if block.filled <= at:
                    assert block.failure is not None
                    raise block.failure
                count = min(block.filled - at, len(buffer))
            buffer[:count] = memoryview(block.buffer)[at : at + count]
        finally:
            with self._changed:
                block.readers -= 1
                block.taken += count
                self._drop_if_spent(block)
        return count

    def _block_for(self, offset: int) -> _Block | None:
        """The block with that byte, begun now if the plan has it; None: it is read by itself."""
        found = self._find(offset)
        if found is not None or self._cursor is None or offset < self._cursor:
            return found
        if offset - self._cursor <= self._window_bytes:  # what is before it may be asked for yet
            self._begin_up_to(offset)
            found = self._find(offset)
            if found is not None:
                return found
        piece = self._plan.next_piece(offset)
        if piece is None or piece.offset > offset or not self._make_room(piece):
            return None
        return self._begin(piece)

    def _find(self, offset: int) -> _Block | None:
        number = bisect_right(self._blocks, offset, key=lambda block: block.piece.offset)
        if number and offset < self._blocks[number - 1].piece.end:
            return self._blocks[number - 1]
        return None

    def _to_next_block(self, offset: int) -> int:
        """How many bytes from `offset` on no block has and no coming piece will have."""
        number = bisect_right(self._blocks, offset, key=lambda block: block.piece.offset)
        starts = [self._blocks[number].piece.offset] if number < len(self._blocks) else []
        coming = self._plan.next_piece(max(offset + 1, self._cursor or 0))
        if coming is not None and coming.offset > offset + 1:
            starts.append(coming.offset)
        return min((start - offset for start in starts), default=1 << 62)

    # The window, under the lock

    def _start(self, offset: int) -> None:
        if self._closed:
            raise CancelledError("the disk is closed")
        if self._cursor is None:
            step = self._plan.piece_bytes
            self._cursor = max(0, (offset // step - 1) * step)  # a neighbour may have overtaken
            for thread in self._threads:
                thread.start()

    def _begin_up_to(self, offset: int) -> None:
        while (piece := self._plan.next_piece(self._cursor or 0)) is not None:
            if piece.offset > offset or not self._has_room(piece):
                return
            self._begin(piece)

    def _begin(self, piece: Piece) -> _Block:
        block = _Block(piece, self._memory(piece))
        self._held_bytes += len(block.buffer)
        self._blocks.append(block)  # pieces are begun in order
        self._queue.append(block)
        self._cursor = piece.end
        self._changed.notify_all()
        return block

    def _memory(self, piece: Piece) -> bytearray:
        """Of a piece; used again, because fresh memory costs a page fault per 4 KiB."""
        cost_bytes = self._cost_bytes(piece)
        if self._spare and cost_bytes == len(self._spare[-1]):
            return self._spare.pop()
        return bytearray(cost_bytes)

    def _cost_bytes(self, piece: Piece) -> int:
        whole = self._plan.piece_bytes
        return whole if piece.length > whole // 2 else piece.length

    def _has_room(self, piece: Piece) -> bool:
        room_bytes = self._window_bytes - self._held_bytes
        return len(self._blocks) < _MOST_BLOCKS and self._cost_bytes(piece) <= room_bytes

    def _make_room(self, piece: Piece) -> bool:
        for block in [block for block in self._blocks if block.idle]:
            if self._has_room(piece):
                break
            self._drop(block)
        return self._has_room(piece)

    def _drop_if_spent(self, block: _Block) -> None:
        if block.idle and block.taken >= block.piece.wanted_bytes:
            self._drop(block)

    def _drop(self, block: _Block) -> None:
        if block not in self._blocks:
            return
        self._blocks.remove(block)
        self._held_bytes -= len(block.buffer)
        reusable = block.idle and len(block.buffer) == self._plan.piece_bytes
        if reusable and len(self._spare) < _MOST_SPARE:
            self._spare.append(block.buffer)
        self._changed.notify_all()

    # Threads that fetch

    def _run(self) -> None:
        while (block := self._next_block()) is not None:
            failure: Exception | None = None
            with memoryview(block.buffer)[: block.piece.length] as view:
                try:
                    self._fetch(block.piece.offset, view, partial(self._came, block))
                except Exception as error:  # raised again in whoever waits for it
                    failure = error
            with self._changed:
                block.fetching, block.failure = False, failure
                if failure is not None:  # a later read tries by itself
                    self._drop(block)
                self._drop_if_spent(block)
                self._changed.notify_all()

    def _next_block(self) -> _Block | None:
        with self._changed:
            while not self._closed:
                if self._queue:
                    return self._queue.popleft()
                piece = self._plan.next_piece(self._cursor or 0)
                if piece is not None and self._has_room(piece):
                    self._begin(piece)
                else:
                    self._changed.wait()
        return None

    def _came(self, block: _Block, count: int) -> None:
        with self._changed:
            if self._closed:
                raise CancelledError("the disk was closed while it was read")
            block.filled = count
            self._changed.notify_all()
