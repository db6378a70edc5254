"""NBD servers for tests: on loopback or a Unix socket, with their complaints collected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.exports.nbd import NbdExport, NbdServer, NbdTls, TcpAddress
from nbd_server.limits import Limits
from tests.support.complaints import complaints


@contextmanager
def serving(
    *exports: NbdExport,
    address: TcpAddress | Path | None = None,
    limits: Limits | None = None,
    tls: NbdTls | None = None,
) -> Iterator[NbdServer]:
    """Serve without any complaint until the block ends."""
    server = NbdServer(exports, address=address or TcpAddress(), limits=limits, tls=tls)
    with complaints(), server:
        yield server
