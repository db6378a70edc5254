"""Certificates, evidence and the security check over the API and on the pages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.api.services import Services
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.catalog.verifications import VerificationRecord
from appliance.jobs.certificate import Evidence
from appliance.jobs.certificate_store import CertificateStore
from tests.support.api_server import Client, api_serving, make_token
from tests.support.certificates_issued import NOON, proof
from tests.support.small_backups import back_up_bytes

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(200)
PICTURE_HASH = hashlib.sha256(PICTURE).hexdigest()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Services, int]]:
    with api_serving(tmp_path) as (services, port):
        yield services, port


@pytest.fixture
def services(served: tuple[Services, int]) -> Services:
    return served[0]


@pytest.fixture
def reader(served: tuple[Services, int]) -> Client:
    services, port = served
    token = make_token(services.catalog, "r", Role.READ_ONLY)
    return Client(port, token=token)


@pytest.fixture
def folder(services: Services) -> Path:
    """Of a verification that was certified: a picture, a log that lies, a report."""
    plain = proof()
    picture = Evidence(name="screen.png", size_bytes=len(PICTURE), sha256=PICTURE_HASH)
    log = Evidence(name="serial.log", size_bytes=4, sha256="ab" * 32)
    guest = plain.guests[0].model_copy(update={"evidence": (picture, log)})
    CertificateStore(services.home).issue(replace(plain, guests=(guest,)))
    folder = services.home / "verify" / plain.run_id / "web"
    folder.mkdir(parents=True)
    (folder / "screen.png").write_bytes(PICTURE)
    (folder / "serial.log").write_bytes(b"fake")
    (folder.parent / "report.html").write_bytes(b"<style>p{}</style><p>report")
    back_up_bytes(services.repository, b"x" * 1000, "web")
    services.catalog.verifications.add(
        [
            VerificationRecord(
                run_id=plain.run_id,
                vm="web",
                point_id=guest.point_id,
                started_at=NOON,
                verdict="passed",
                recovery_s=5.0,
                rto_s=60.0,
                point_age_s=3600.0,
                rpo_s=None,
                certificate=1,
                place="sandbox",
            )
        ]
    )
    return folder


def test_certificates_are_listed_shown_and_downloaded(reader: Client, folder: Path) -> None:
    """As they were issued, so that they can be checked anywhere."""
    (listed,) = reader.api("GET", "/certificates").document
    assert (listed["sequence"], listed["verdict"], listed["vms"]) == (1, "passed", ["web"])
    shown = reader.api("GET", "/certificates/1").document
    assert shown["body"]["guests"][0]["recovery_milliseconds"] == 5000
    file = reader.api("GET", "/certificates/1/file")
    assert "certificate-000001.json" in file.headers["Content-Disposition"]
    assert hashlib.sha256(file.body).hexdigest() == shown["sha256"]
    chain = reader.api("GET", "/certificate-chain").document
    assert (chain["intact"], chain["count"]) == (True, 1)
    assert reader.api("GET", "/certificates?before=1").document == []
    assert reader.api("GET", "/certificates/2").status == 404
    assert reader.api("GET", "/certificates/x/file").status == 422


def test_only_evidence_whose_hash_is_signed_is_shown(reader: Client, folder: Path) -> None:
    """A file that was changed is not what the run saw; a link leads nowhere else."""
    picture = reader.api("GET", f"/certificates/1/evidence/{PICTURE_HASH}")
    assert (picture.status, picture.body) == (200, PICTURE)
    assert picture.headers["Content-Type"] == "image/png"
    lie = reader.api("GET", f"/certificates/1/evidence/{'ab' * 32}")
    assert (lie.status, lie.document["code"]) == (404, "proof.not-found")
    (folder / "screen.png").rename(folder / "moved.png")
    (folder / "screen.png").symlink_to(folder / "moved.png")
    assert reader.api("GET", f"/certificates/1/evidence/{PICTURE_HASH}").status == 404


def test_a_report_may_run_nothing(reader: Client, folder: Path) -> None:
    """It is shown in a box of its own: no scripts, nothing loaded, no login."""
    report = reader.api("GET", "/certificates/1/report")
    assert report.body.endswith(b"report")
    policy = report.headers["Content-Security-Policy"]
    assert "sandbox" in policy and "default-src 'none'" in policy


def test_a_certificate_that_was_changed_breaks_the_chain(
    reader: Client, services: Services, folder: Path
) -> None:
    """And is listed as refused, with why; the pages say so too."""
    (path,) = CertificateStore(services.home).paths()
    raw = path.read_bytes().replace(b'"passed"', b'"failed"')
    path.chmod(0o644)
    path.write_bytes(raw)
    (listed,) = reader.api("GET", "/certificates").document
    assert listed["kind"] == "refused" and "certificate." in listed["failure"]
    assert not reader.api("GET", "/certificate-chain").document["intact"]
    assert b"chain of certificates is broken" in reader.call("GET", "/reports").body


def test_the_pages_show_the_newest_proof_with_its_picture(reader: Client, folder: Path) -> None:
    """Overview, reports, the VM and the certificate."""
    (latest,) = reader.api("GET", "/proofs").document
    assert (latest["vm"], latest["recovery_s"], latest["certificate"]) == ("web", 5.0, 1)
    address = f"/api/v1/certificates/1/evidence/{PICTURE_HASH}".encode()
    for page in ("/", "/reports/1"):
        assert address in reader.call("GET", page).body, page
    for page in ("/reports", "/vms/web"):
        assert b"passed" in reader.call("GET", page).body, page


def test_the_security_check_fails_and_passes_by_what_there_is(
    reader: Client, services: Services
) -> None:
    """What failed comes first and says what to do; doing it makes it pass."""
    before = {each["code"]: each for each in reader.api("GET", "/security").document}
    assert not before["security.two-administrators"]["passed"]
    assert before["security.two-administrators"]["next_step"]
    assert not before["security.repository-encrypted"]["passed"]
    assert not before["security.token-expires"]["passed"]
    assert before["security.audit-intact"]["passed"]
    for name in ("first", "second"):
        services.catalog.accounts.create(
            name, Secret.of_text("correct horse battery"), Role.ADMINISTRATOR
        )
    found = reader.api("GET", "/security").document
    after = {each["code"]: each for each in found}
    assert after["security.two-administrators"]["passed"]
    assert not after["security.second-factor"]["passed"]
    assert [each["passed"] for each in found] == sorted(each["passed"] for each in found)


def test_settings_name_the_certificate_and_no_secret(reader: Client, services: Services) -> None:
    """What an administrator compares, and what support asks for first."""
    shown = reader.api("GET", "/settings").document
    assert shown["tls_fingerprint"] and shown["encrypted"] is False
    assert reader.call("GET", "/settings").status == 200
