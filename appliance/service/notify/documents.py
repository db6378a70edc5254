"""Notification channels and deliveries as JSON documents, without secrets."""

from __future__ import annotations

from typing import Any

from appliance.catalog.notifications import ChannelState, Notifications, Outgoing


def channel_document(notifications: Notifications, state: ChannelState) -> dict[str, Any]:
    """With how the newest delivery stands."""
    newest = notifications.recent(channel=state.channel.name, limit=1)
    return {
        **state.channel.model_dump(mode="json"),
        "has_secret": state.has_secret,
        "last": delivery_document(newest[0]) if newest else None,
    }


def delivery_document(outgoing: Outgoing) -> dict[str, Any]:
    return {
        "id": outgoing.id,
        "channel": outgoing.channel,
        "subject": outgoing.message.subject,
        "state": outgoing.state,
        "attempts": outgoing.attempts,
        "queued_at": outgoing.queued_at.isoformat(),
        "next_at": outgoing.next_at.isoformat() if outgoing.next_at else None,
        "ended_at": outgoing.ended_at.isoformat() if outgoing.ended_at else None,
        "error_code": outgoing.error_code,
        "error": outgoing.error,
    }
