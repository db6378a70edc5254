"""An outcome in the words of a certificate and of the catalog. Pure.

A certificate says what was proved and how long it took, by codes and numbers; nothing that a guest
has written goes into it but as a hash.
"""

from __future__ import annotations

from appliance.catalog.verifications import VerificationRecord
from appliance.jobs.certificate import (
    DiskProof,
    Evidence,
    GuestProof,
    StageProof,
    VerificationBody,
)
from appliance.jobs.certificate_store import RunProof
from appliance.jobs.verification_outcome import GuestOutcome, VerificationOutcome
from appliance.jobs.verification_stages import Verdict


def proof_of(outcome: VerificationOutcome, repository_id: bytes) -> RunProof:
    return RunProof(
        run_id=outcome.run_id,
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        guests=tuple(_guest(guest, repository_id) for guest in outcome.guests),
        verdict=outcome.verdict,
    )


def records_of(outcome: VerificationOutcome, certificate: int | None) -> list[VerificationRecord]:
    return [
        VerificationRecord(
            run_id=outcome.run_id,
            vm=guest.manifest.vm,
            point_id=guest.manifest.point_id,
            started_at=outcome.started_at,
            verdict=guest.verdict.value,
            recovery_s=guest.recovery_s,
            rto_s=guest.plan.rto.total_seconds() if guest.plan.rto else None,
            point_age_s=guest.point_age_s,
            rpo_s=guest.plan.rpo.total_seconds() if guest.plan.rpo else None,
            certificate=certificate,
            place=guest.plan.boot.place.value if guest.plan.boot else None,
            reasons=tuple(reason.code for reason in guest.reasons),
        )
        for guest in outcome.guests
    ]


def records_in(body: VerificationBody) -> list[VerificationRecord]:
    """The rows that a certificate stands for; of reasons it knows those of stages."""
    return [
        VerificationRecord(
            run_id=body.run_id,
            vm=guest.vm,
            point_id=guest.point_id,
            started_at=body.started_at,
            verdict=guest.verdict.value,
            recovery_s=_seconds(guest.recovery_milliseconds),
            rto_s=_seconds(guest.rto_milliseconds),
            point_age_s=guest.point_age_seconds,
            rpo_s=guest.rpo_seconds,
            certificate=body.sequence,
            place=guest.place.value if guest.place else None,
            reasons=tuple(
                stage.reason
                for stage in guest.stages
                if stage.verdict is Verdict.FAILED and stage.reason
            ),
        )
        for guest in body.guests
    ]


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _guest(guest: GuestOutcome, repository_id: bytes) -> GuestProof:
    manifest, plan = guest.manifest, guest.plan
    return GuestProof(
        vm=manifest.vm,
        point_id=manifest.point_id,
        created_at=manifest.created_at,
        consistency=manifest.consistency.value,
        repository_id=repository_id.hex(),
        disks=tuple(
            DiskProof(number=disk.number, size_bytes=disk.size_bytes, root_hex=disk.root_hex)
            for disk in manifest.disks
        ),
        stages=tuple(
            StageProof(
                stage=stage.stage,
                verdict=stage.verdict,
                milliseconds=_milliseconds(stage.seconds),
                reason=stage.reason.code if stage.reason else None,
            )
            for stage in guest.stages
        ),
        evidence=tuple(
            Evidence(name=kept.name, size_bytes=kept.size_bytes, sha256=kept.sha256)
            for kept in guest.evidence
        ),
        verdict=guest.verdict,
        recovery_milliseconds=(
            _milliseconds(guest.recovery_s) if guest.recovery_s is not None else None
        ),
        rto_milliseconds=_milliseconds(plan.rto.total_seconds()) if plan.rto else None,
        point_age_seconds=round(guest.point_age_s),
        rpo_seconds=round(plan.rpo.total_seconds()) if plan.rpo else None,
        place=plan.boot.place if plan.boot else None,
    )


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
