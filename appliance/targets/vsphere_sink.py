"""A disk writer of `vmware/` as a `DiskSink`: errors of the appliance, cancel between writes."""

from __future__ import annotations

from collections.abc import Callable

from appliance.base.run_context import CancelToken
from appliance.sources.vsphere_reasons import vsphere_calls
from vmware.transports.contract import DiskWriter


class VsphereSink:
    """One thread at a time. `on_close` is told once that the disk is whole and given back."""

    def __init__(
        self,
        writer: DiskWriter,
        host: str,
        cancel: CancelToken,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._writer = writer
        self._host = host
        self._cancel = cancel
        self._on_close = on_close
        self._closed = False

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._cancel.check()
        with vsphere_calls(self._host, self._cancel):
            self._writer.write_at(offset, data)

    def zero_at(self, offset: int, length: int) -> None:
        self._cancel.check()
        with vsphere_calls(self._host, self._cancel):
            self._writer.zero_at(offset, length)

    def close(self) -> None:
        if self._closed:
            return
        with vsphere_calls(self._host):
            self._writer.close()
        self._closed = True
        self._on_close()
