"""The NFC lease transport under the transport suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.contract.transport import OpenDisk, TransportSuite
from tests.support.nfc_server import NfcServer
from vmware.transports.contract import DiskReader
from vmware.transports.nfc_export import NfcLeaseTransport


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NfcServer]:
    server = NfcServer(tmp_path)
    yield server
    server.http.close()
    assert set(server.leases) == set(server.ended), "a lease was left"


class TestNfcLease(TransportSuite):
    @pytest.fixture
    def open_disk(self, server: NfcServer) -> OpenDisk:
        transport = NfcLeaseTransport()

        def open_disk(
            content: bytes, planned: Sequence[tuple[int, int]] | None = None
        ) -> DiskReader:
            server.show(content)
            plan = None if planned is None else tuple(planned)
            return transport.open(server.request(len(content), planned=plan))

        return open_disk
