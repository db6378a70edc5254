"""TLS with x509 certificates, in both directions, with libnbd, qemu and plain sockets."""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.exports.nbd import NbdExport, NbdServer, NbdTls
from nbd_server.limits import Limits
from nbd_server.protocol import OPTION_HEADER, OPTION_MAGIC, Option, OptionReply
from tests.support.certificates import make_authority, make_certificate
from tests.support.complaints import eventually
from tests.support.nbd_client import NbdClient
from tests.support.nbd_servers import serving
from tests.support.needs import needs
from tests.support.programs import attempt, run
from tests.support.sparse_device import SparseDevice

pytestmark = pytest.mark.integration

MIB = 1 << 20
DISK_BYTES = 24 * MIB
CONTENT = random.Random(7).randbytes(DISK_BYTES)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server/, client/ of one authority, and stranger/ with a client of another."""
    needs("openssl")
    base = tmp_path_factory.mktemp("tls")
    make_authority(base / "ca", "test authority")
    make_certificate(base / "ca", base / "server", "server")
    make_certificate(base / "ca", base / "client", "client")
    make_authority(base / "other-ca", "other authority")
    make_certificate(base / "other-ca", base / "stranger", "client")
    (base / "stranger" / "ca-cert.pem").write_bytes((base / "ca" / "ca-cert.pem").read_bytes())
    (base / "anonymous").mkdir()
    (base / "anonymous" / "ca-cert.pem").write_bytes((base / "ca" / "ca-cert.pem").read_bytes())
    return base


@pytest.fixture
def server(certificates: Path) -> Iterator[NbdServer]:
    disk = SparseDevice(DISK_BYTES, content=CONTENT)
    with serving(
        NbdExport(name="disk", disk=disk, read_only=False),
        tls=NbdTls(directory=certificates / "server"),
        limits=Limits(handshake_s=5.0),
    ) as running:
        yield running


def uri(server: NbdServer, certificates: Path) -> str:
    return f"{server.uri('disk')}?tls-certificates={certificates}"


def test_libnbd_reads_and_writes_over_tls(
    server: NbdServer, certificates: Path, tmp_path: Path
) -> None:
    needs("nbdinfo", "nbdcopy", "cmp")
    client = uri(server, certificates / "client")
    assert client.startswith("nbds://127.0.0.1:")
    assert "with TLS" in run("nbdinfo", client)
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.write_bytes(CONTENT)
    run("nbdcopy", client, copy)
    run("cmp", original, copy)
    original.write_bytes(CONTENT[::-1])
    run("nbdcopy", "--flush", original, client)
    run("nbdcopy", client, copy)
    run("cmp", original, copy)


def test_qemu_reads_and_writes_over_tls(
    server: NbdServer, certificates: Path, tmp_path: Path
) -> None:
    needs("qemu-img", "qemu-io")
    credentials = f"tls-creds-x509,id=t0,endpoint=client,dir={certificates / 'client'}"
    image = f"driver=nbd,host=127.0.0.1,port={server.port},export=disk,tls-creds=t0"
    original = tmp_path / "original.raw"
    original.write_bytes(CONTENT)
    run(
        *("qemu-img", "compare", "--object", credentials, "--image-opts"),
        *(image, f"driver=raw,file.driver=file,file.filename={original}"),
    )
    run(
        *("qemu-io", "--object", credentials, "--image-opts", image),
        *("-c", "write -P 9 1M 8M", "-c", "flush", "-c", "read -P 9 1M 8M"),
    )


@pytest.mark.parametrize("who", ["stranger", "anonymous"])
def test_clients_without_our_certificate_stay_outside(
    server: NbdServer, certificates: Path, who: str
) -> None:
    """Another authority's certificate, or none at all."""
    needs("nbdinfo")
    refused = attempt("nbdinfo", uri(server, certificates / who))
    assert refused.returncode != 0
    assert run("nbdinfo", "--size", uri(server, certificates / "client")) == f"{DISK_BYTES}\n"


def test_clear_text_is_refused(server: NbdServer) -> None:
    needs("nbdinfo")
    assert attempt("nbdinfo", f"nbd://127.0.0.1:{server.port}/disk").returncode != 0
    with NbdClient(("127.0.0.1", server.port)) as client:
        assert client.option(Option.LIST)[-1][0] == OptionReply.ERR_TLS_REQD


def test_data_sent_in_clear_behind_starttls_end_the_connection(server: NbdServer) -> None:
    """They could have been injected by somebody in the middle."""
    with NbdClient(("127.0.0.1", server.port)) as client:
        pair = [OPTION_HEADER.pack(OPTION_MAGIC, option, 0) for option in (5, 3)]
        client.sock.sendall(b"".join(pair))
        try:
            assert client.option_reply(Option.STARTTLS) == (OptionReply.ACK, b"")
        except (EOFError, ConnectionError):
            return
        assert client.closed_by_server()


def test_rubbish_instead_of_a_tls_handshake_ends_the_connection(
    server: NbdServer, certificates: Path
) -> None:
    with NbdClient(("127.0.0.1", server.port)) as client:
        assert client.option(Option.STARTTLS) == [(OptionReply.ACK, b"")]
        client.sock.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
        while True:
            try:
                if not client.sock.recv(4096):
                    break
            except ConnectionError:
                break
    with NbdClient(("127.0.0.1", server.port)) as vanishing:
        assert vanishing.option(Option.STARTTLS) == [(OptionReply.ACK, b"")]
    run("nbdinfo", uri(server, certificates / "client"))
    eventually(lambda: server.counters.connections == 0)


def test_a_half_made_tls_connection_ends_with_the_server_or_the_deadline(
    certificates: Path,
) -> None:
    tls = NbdTls(directory=certificates / "server")
    export = NbdExport(name="disk", disk=SparseDevice(512))
    with serving(export, tls=tls, limits=Limits(handshake_s=0.2)) as server:
        with NbdClient(("127.0.0.1", server.port)) as silent:
            assert silent.option(Option.STARTTLS) == [(OptionReply.ACK, b"")]
            assert silent.closed_by_server()
        eventually(lambda: server.counters.connections == 0)
    with serving(export, tls=tls) as server, NbdClient(("127.0.0.1", server.port)) as silent:
        assert silent.option(Option.STARTTLS) == [(OptionReply.ACK, b"")]
        server.stop()
        assert silent.closed_by_server()
        assert server.counters.connections == 0


def test_negotiation_starts_again_inside_tls(server: NbdServer, certificates: Path) -> None:
    """Options work inside as they did outside, and a second STARTTLS is refused."""
    context = ssl.create_default_context(cafile=str(certificates / "client" / "ca-cert.pem"))
    context.load_cert_chain(
        certificates / "client" / "client-cert.pem", certificates / "client" / "client-key.pem"
    )
    with NbdClient(("127.0.0.1", server.port)) as client:
        assert client.option(Option.STARTTLS) == [(OptionReply.ACK, b"")]
        client.sock = context.wrap_socket(client.sock, server_hostname="127.0.0.1")
        assert client.option(Option.STARTTLS)[-1][0] == OptionReply.ERR_INVALID
        client.negotiate("disk", allocation=True)
        assert client.read(5, 3 * MIB).data == CONTENT[5 : 5 + 3 * MIB]
        assert client.write(0, b"x" * (2 * MIB)).errno == 0
        assert client.read(0, 2 * MIB).data == b"x" * (2 * MIB)
        server.stop()
        assert server.counters.connections == 0
