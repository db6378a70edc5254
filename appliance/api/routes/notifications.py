"""Notification channels and what became of their messages. Secrets go in and never come out."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AwareDatetime, Field, model_validator

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.base.secret import Secret
from appliance.catalog.channel import Channel, EmailChannel, Occasion, SyslogChannel, WebhookChannel
from appliance.catalog.notifications import Delivery
from appliance.service.notify.documents import channel_document, delivery_document

table = RouteTable("notifications")


class DeliveryShown(Shown):
    id: int
    channel: str
    subject: str
    state: Delivery
    attempts: int
    queued_at: AwareDatetime
    next_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    error_code: str | None
    error: str | None


class ChannelShown(Shown):
    """`server`, `port` and so on as the kind has them."""

    name: str
    kind: str
    occasions: list[Occasion]
    digest_at: str | None
    time_zone: str
    ca_pem: str | None
    server: str | None = None
    port: int | None = None
    security: str | None = None
    sender: str | None = None
    recipients: list[str] = Field(default_factory=list)
    user: str | None = None
    url: str | None = None
    transport: str | None = None
    facility: int | None = None
    has_secret: bool
    last: DeliveryShown | None


class NewChannel(Body):
    channel: Annotated[EmailChannel | WebhookChannel | SyslogChannel, Field(discriminator="kind")]
    secret: str | None = Field(default=None, min_length=1, max_length=1024)
    """Password of an e-mail channel with a user; signing key of a webhook."""

    @model_validator(mode="after")
    def _tells_something(self) -> Self:
        if not self.channel.occasions and self.channel.digest_at is None:
            raise ValueError("it would tell nothing: choose an occasion, or a time for the digest")
        return self


class DeliveryQuery(Body):
    channel: str | None = Field(default=None, max_length=63)
    limit: int = Field(default=100, ge=1, le=1000)


@table.add("GET", "/notifications", Permission.CONFIGURE, response=list[ChannelShown])
def list_channels(call: Call) -> list[ChannelShown]:
    """The channels, without their secrets, and how the newest delivery of each stands."""
    notifications = call.services.catalog.notifications
    return [
        ChannelShown.model_validate(channel_document(notifications, state))
        for state in notifications.channels()
    ]


@table.add("POST", "/notifications", Permission.CONFIGURE, body=NewChannel, response=ChannelShown)
def create_channel(call: Call) -> ChannelShown:
    """Add a channel."""
    body, notifications = call.body_as(NewChannel), call.services.catalog.notifications
    channel: Channel = body.channel
    notifications.add(channel, Secret.of_text(body.secret) if body.secret is not None else None)
    return _shown(call, channel.name)


@table.add("POST", "/notifications/{name}/test", Permission.CONFIGURE)
def test_channel(call: Call) -> None:
    """Send a test message now; the answer says whether it was taken."""
    call.services.post.test(call.path["name"])


@table.add("DELETE", "/notifications/{name}", Permission.CONFIGURE)
def remove_channel(call: Call) -> None:
    """Forget a channel, its secret, and what waits for it."""
    call.services.catalog.notifications.remove(call.path["name"])


@table.add(
    "GET",
    "/deliveries",
    Permission.CONFIGURE,
    query=DeliveryQuery,
    response=list[DeliveryShown],
)
def list_deliveries(call: Call) -> list[DeliveryShown]:
    """The newest notifications and what became of them, newest first."""
    query = call.query_as(DeliveryQuery)
    found = call.services.catalog.notifications.recent(channel=query.channel, limit=query.limit)
    return [DeliveryShown.model_validate(delivery_document(each)) for each in found]


def _shown(call: Call, name: str) -> ChannelShown:
    found: list[ChannelShown] = list_channels(call)
    return next(each for each in found if each.name == name)
