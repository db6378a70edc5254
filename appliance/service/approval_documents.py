"""Requests for a second administrator's approval, as JSON documents and in words."""

from __future__ import annotations

from typing import Any

from appliance.catalog.approvals import Approval
from appliance.service.deletion import Asked


def approval_document(approval: Approval) -> dict[str, Any]:
    return {
        "id": approval.id,
        "kind": approval.kind,
        "objects": list(approval.objects),
        "reason": approval.reason,
        "requested_by": approval.requested_by,
        "requested_at": approval.requested_at.isoformat(),
        "expires_at": approval.expires_at.isoformat(),
        "state": approval.state,
        "decided_by": approval.decided_by,
        "decided_at": approval.decided_at.isoformat() if approval.decided_at else None,
    }


def asked_document(asked: Asked) -> dict[str, Any]:
    return {
        "state": "done" if asked.approval is None else "waits-for-approval",
        "approval": approval_document(asked.approval) if asked.approval else None,
    }


def asked_words(asked: Asked, done: str) -> str:
    if asked.approval is None:
        return done
    number = asked.approval.id
    return (
        f"request {number} waits for another administrator until"
        f" {asked.approval.expires_at:%Y-%m-%d %H:%M} UTC:"
        f" `holdfast approval decide {number} approve`"
    )
