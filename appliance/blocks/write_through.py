"""A BlockDevice whose every write is durable before it is acknowledged.

Put over the overlay of a session that outlives its server. An NBD client that reconnects (QEMU with
`reconnect-delay`) repeats what was not answered, and then flushes: a write that the killed server
had answered, but not made durable, would be lost under a guest that believes it safe. Concurrent
writes share an fsync through the overlay's group commit.

Thread model: as of BlockDevice.
"""

from __future__ import annotations

from appliance.blocks.device import BlockDevice
from appliance.blocks.layers import ReaderLayer


class WriteThroughDevice(ReaderLayer):
    def __init__(self, device: BlockDevice) -> None:
        super().__init__(device)
        self._device = device

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """As BlockDevice.write_at; durable on return. Raises also what `flush` raises."""
        self._device.write_at(offset, data)
        self._device.flush()

    def zero_at(self, offset: int, length: int) -> None:
        """As BlockDevice.zero_at; durable on return. Raises also what `flush` raises."""
        self._device.zero_at(offset, length)
        self._device.flush()

    def flush(self) -> None:
        self._device.flush()
