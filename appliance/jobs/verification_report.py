"""The report of a verification run: one HTML file that needs nothing else, and one JSON document.

The page holds its pictures and its style and no script; its own policy forbids it to load or run
anything, so it can be mailed and opened anywhere. Whatever a guest wrote (probe answers, its serial
log, its screen) is cut, freed of control characters and escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from appliance.base.units import format_duration, format_size
from appliance.base.version import __version__
from appliance.catalog.verifications import VerificationRecord
from appliance.jobs.certificate_store import Issued
from appliance.jobs.verification_outcome import GuestOutcome, KeptFile, VerificationOutcome

_PICTURE_BYTES_MAX = 8 << 20
_LOG_LINES_MOST = 200
_LINE_CHARACTERS_MOST = 400

Trends = Mapping[str, Sequence[VerificationRecord]]

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #8886; }
td { overflow-wrap: anywhere; }
.passed { color: #17803d; } .failed { color: #c22; font-weight: 600; } .skipped { color: #777; }
@media (prefers-color-scheme: dark) { .passed { color: #5c8; } .failed { color: #f77; } }
img { max-width: 100%; border: 1px solid #8886; }
pre { overflow: auto; max-height: 24rem; padding: .6rem; border: 1px solid #8886; font-size: 13px; }
polyline { fill: none; stroke: currentColor; stroke-width: 2; }
"""  # noqa: E501  (a style sheet)


def report_json(outcome: VerificationOutcome, issued: Issued | None, trends: Trends) -> Any:
    """The document of `verify --json` and of the report."""
    return {
        "run_id": outcome.run_id,
        "verdict": outcome.verdict.value,
        "started_at": outcome.started_at.isoformat(),
        "ended_at": outcome.ended_at.isoformat(),
        "version": __version__,
        "certificate": None
        if issued is None
        else {"sequence": issued.sequence, "path": str(issued.path), "sha256": issued.sha256},
        "guests": [
            _guest_json(guest, trends.get(guest.manifest.vm, ())) for guest in outcome.guests
        ],
    }


def report_html(outcome: VerificationOutcome, issued: Issued | None, trends: Trends) -> str:
    return "\n".join(_page(outcome, issued, trends)) + "\n"


def _guest_json(guest: GuestOutcome, trend: Sequence[VerificationRecord]) -> dict[str, Any]:
    recovery_s = guest.recovery_s
    return {
        "point_id": guest.manifest.point_id,
        "vm": guest.manifest.vm,
        "verdict": guest.verdict.value,
        "stages": [stage.as_json() for stage in guest.stages],
        "recovery_seconds": None if recovery_s is None else round(recovery_s, 3),
        "rto_seconds": guest.plan.rto.total_seconds() if guest.plan.rto else None,
        "point_age_seconds": round(guest.point_age_s, 3),
        "rpo_seconds": guest.plan.rpo.total_seconds() if guest.plan.rpo else None,
        "recovery_trend": [
            {
                "run_id": record.run_id,
                "started_at": record.started_at.isoformat(),
                "verdict": record.verdict,
                "recovery_seconds": record.recovery_s,
            }
            for record in trend
        ],
        "volumes": [
            {
                "disk": check.disk,
                "partition": check.number,
                "kind": check.kind.value if check.kind else None,
                "seconds": round(check.seconds, 3),
                "reason": check.reason.code if check.reason else None,
                "detail": check.detail,
            }
            for check in guest.volumes
        ],
        "evidence": [
            {
                "name": kept.name,
                "path": str(kept.path),
                "size_bytes": kept.size_bytes,
                "sha256": kept.sha256,
            }
            for kept in guest.evidence
        ],
        "reasons": [reason.as_json() for reason in guest.reasons],
        **_hash_json(guest),
        **_boot_json(guest),
    }


def _hash_json(guest: GuestOutcome) -> dict[str, Any]:
    if guest.hashes is None:
        return {}
    return {
        "chunk_count": guest.hashes.chunk_count,
        "verified_bytes": guest.hashes.verified_bytes,
        "seconds": round(guest.hashes.seconds, 3),
    }


def _boot_json(guest: GuestOutcome) -> dict[str, Any]:
    if guest.boot is None:
        return {}
    report = guest.boot.report
    return {
        "ready": report.ok,
        "start_seconds": round(guest.boot.start_seconds, 3),
        "first_byte_seconds": report.first_serial_byte_s,
        "ready_seconds": report.ready_s,
        "read_bytes": guest.boot.read_bytes,
        "prefetched_bytes": guest.boot.prefetched_bytes,
        "accelerator": report.accelerator,
        "accelerator_reason": report.accelerator_reason.as_json(),
        "probes": [
            {
                "probe": probe.probe,
                "passed": probe.ok,
                "seconds": probe.seconds,
                "detail": probe.detail,
                "reason": probe.reason.as_json() if probe.reason else None,
            }
            for probe in report.probes
        ],
        "scripts": [
            {
                "script": script.script,
                "passed": script.ok,
                "seconds": script.seconds,
                "detail": script.detail,
            }
            for script in report.scripts
        ],
        "screen": guest.screen.text if guest.screen else None,
        "screenshot_path": report.screenshot_path,
        "serial_log_path": report.serial_log_path,
        "power_off": report.power_off,
    }


def _page(outcome: VerificationOutcome, issued: Issued | None, trends: Trends) -> Iterator[str]:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    title = f"Verification {outcome.run_id}: {outcome.verdict}"
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>Verification: {_verdict(outcome.verdict.value)}</h1>"
    yield f"<p>Run {_text(outcome.run_id)}, {outcome.started_at:%F %T} to "
    yield f"{outcome.ended_at:%T} UTC, Holdfast {_text(__version__)}.</p>"
    if issued is None:
        yield "<p>No certificate was issued.</p>"
    else:
        yield f"<p>Certificate {issued.sequence}, SHA-256 <code>{issued.sha256}</code>.</p>"
    yield from _table(
        ("VM", "recovery point", "verdict", "recovered in", "allowed", "age", "allowed"),
        [_summary_row(guest) for guest in outcome.guests],
    )
    for guest in outcome.guests:
        yield from _section(guest, trends.get(guest.manifest.vm, ()))
    yield "</body></html>"


def _summary_row(guest: GuestOutcome) -> list[str]:
    plan, recovery_s = guest.plan, guest.recovery_s
    return [
        _text(guest.manifest.vm),
        _text(guest.manifest.point_id),
        _verdict(guest.verdict.value),
        "" if recovery_s is None else format_duration(recovery_s),
        format_duration(plan.rto.total_seconds()) if plan.rto else "",
        format_duration(guest.point_age_s),
        format_duration(plan.rpo.total_seconds()) if plan.rpo else "",
    ]


def _section(guest: GuestOutcome, trend: Sequence[VerificationRecord]) -> Iterator[str]:
    yield f"<h2>{_text(guest.manifest.vm)}</h2>"
    if guest.reasons:
        yield "<ul>"
        for reason in guest.reasons:
            yield f"<li>{_text(reason.text)} <code>{_text(reason.code)}</code>: "
            yield f"{_text(reason.next_step)}</li>"
        yield "</ul>"
    yield from _table(
        ("stage", "verdict", "seconds", "detail", "reason"),
        [
            [
                _text(stage.stage.value),
                _verdict(stage.verdict.value),
                f"{stage.seconds:.1f}",
                _text(stage.detail),
                f"<code>{_text(stage.reason.code)}</code>" if stage.reason else "",
            ]
            for stage in guest.stages
        ],
    )
    yield from _trend(trend)
    for kept in guest.evidence:
        yield from _evidence(kept)


def _trend(trend: Sequence[VerificationRecord]) -> Iterator[str]:
    measured = [record.recovery_s for record in trend if record.recovery_s is not None]
    if len(measured) < 2:
        return
    most = max(measured) or 1.0
    points = " ".join(
        f"{number * 300 / (len(measured) - 1):.1f},{58 - 56 * seconds / most:.1f}"
        for number, seconds in enumerate(measured)
    )
    shown = f"last {len(measured)} runs, at most {format_duration(most)}"
    yield f'<p>Time to recover, {shown}:</p><svg width="300" height="60" role="img" '
    yield f'aria-label="Time to recover, {shown}"><polyline points="{points}"/></svg>'


def _evidence(kept: KeptFile) -> Iterator[str]:
    shown = f"{_text(kept.name)}, {format_size(kept.size_bytes)}, SHA-256 {kept.sha256}"
    yield f"<h3>{_text(kept.name)}</h3><p>{shown}</p>"
    try:
        with kept.path.open("rb") as file:
            raw = file.read(_PICTURE_BYTES_MAX + 1)
    except OSError as error:
        yield f"<p>It cannot be read: {_text(str(error.strerror))}</p>"
        return
    if not kept.name.endswith(".png"):
        lines = raw.decode("utf-8", "replace").splitlines()[-_LOG_LINES_MOST:]
        yield "<pre>" + "\n".join(_text(line, _LINE_CHARACTERS_MOST) for line in lines) + "</pre>"
    elif len(raw) <= _PICTURE_BYTES_MAX:
        data = base64.b64encode(raw).decode()
        yield f'<img alt="what the screen showed" src="data:image/png;base64,{data}">'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Cells of `rows` are HTML already."""
    yield "<table><thead><tr>" + "".join(f"<th>{name}</th>" for name in header) + "</tr></thead>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</table>"


def _verdict(text: str) -> str:
    return f'<span class="{escape(text)}">{escape(text)}</span>'


def _text(text: str, limit: int = 2000) -> str:
    shown = "".join(letter if letter.isprintable() else "\N{MIDDLE DOT}" for letter in text[:limit])
    return escape(shown, quote=True)
