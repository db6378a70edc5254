"""Pages of block table and sector bitmaps, kept because neighbours are asked for again and again.

Thread model: thread-safe; the lock is not held while the source is read, so two threads may read
the same page, which is harmless.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from hyperv.vhdx.source import ByteSource, read_exactly
from hyperv.vhdx.structures import KIB

PAGE_BYTES: Final = 64 * KIB
_MOST_PAGES: Final = 256  # 16 MiB


class PageCache:
    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Return exactly these bytes of the file.

        Raises:
            TruncatedDiskFileError: `what` does not lie wholly inside the file.
        """
        first, last = offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES
        pages = [self._page(number, what) for number in range(first, last + 1)]
        start = offset - first * PAGE_BYTES
        found = (pages[0] if len(pages) == 1 else b"".join(pages))[start : start + length]
        if len(found) != length:
            read_exactly(self._source, offset, length, what)  # says so
        return found

    def _page(self, number: int, what: str) -> bytes:
        with self._lock:
            page = self._pages.get(number)
            if page is not None:
                self._pages.move_to_end(number)
                return page
        start = number * PAGE_BYTES
        length = max(0, min(PAGE_BYTES, self._source.size_bytes - start))
        page = read_exactly(self._source, start, length, what)
        with self._lock:
            self._pages[number] = page
            if len(self._pages) > _MOST_PAGES:
                self._pages.popitem(last=False)
        return page

    def clear(self) -> None:
        with self._lock:
            self._pages.clear()
