"""Certificates for tests, issued by the real store over made-up proofs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from appliance.jobs.certificate import DiskProof, Evidence, GuestProof, StageProof
from appliance.jobs.certificate_store import CertificateStore, RunProof
from appliance.jobs.verification_stages import StageName, Verdict

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def proof(vm: str = "web", verdict: Verdict = Verdict.PASSED) -> RunProof:
    guest = GuestProof(
        vm=vm,
        point_id="20261121T110000Z-0123456789ab",
        created_at=NOON,
        consistency="offline",
        repository_id="ab" * 16,
        disks=(DiskProof(number=0, size_bytes=1 << 30, root_hex="cd" * 32),),
        stages=(
            StageProof(stage=StageName.HASHED, verdict=verdict, milliseconds=1234, reason=None),
        ),
        evidence=(Evidence(name="screen.png", size_bytes=100, sha256="ef" * 32),),
        verdict=verdict,
        recovery_milliseconds=5000,
        rto_milliseconds=60_000,
        point_age_seconds=3600,
        rpo_seconds=None,
    )
    return RunProof(
        run_id="20261121T120000Z-0123456789ab",
        started_at=NOON,
        ended_at=NOON,
        guests=(guest,),
        verdict=verdict,
    )


def issue(home: Path, count: int = 1) -> list[Path]:
    store = CertificateStore(home)
    return [store.issue(proof(f"vm-{number}")).path for number in range(count)]
