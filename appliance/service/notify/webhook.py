"""One notification as a POST of JSON to an https address, signed.

    X-Holdfast-Timestamp: 1795276800
    X-Holdfast-Signature: sha256=HEX   HMAC-SHA256 under the channel's secret (RFC 2104) over
                                       the timestamp, a dot, and the body as it was sent

The receiver computes the same and compares; the timestamp is that of the attempt and lets it refuse
what somebody repeats.
Redirections are not followed: they would carry the message elsewhere.
Thread model: blocks; any thread.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
from datetime import datetime
from urllib.parse import urlsplit

from appliance.base.secret import Secret
from appliance.base.version import __version__
from appliance.catalog.channel import Message, WebhookChannel
from appliance.service.notify.errors import NotifyBusyError, NotifyRefusedError
from appliance.service.notify.tls import TIMEOUT_S, client_context, reached

_ANSWER_BYTES_MAX = 64 << 10
_PASSING = frozenset({408, 425, 429})


def send_webhook(channel: WebhookChannel, secret: Secret, message: Message, now: datetime) -> None:
    """`now` is signed: of this attempt, not of what it tells of, which may be a day old.

    Raises NotifyError: the receiver has not said that it took it.
    """
    parts = urlsplit(channel.url)
    assert parts.hostname is not None, "checked by WebhookChannel"
    where = parts.hostname if parts.port is None else f"{parts.hostname} port {parts.port}"
    body = document(message)
    stamp = str(int(now.timestamp()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"Holdfast/{__version__}",
        "X-Holdfast-Event": message.event,
        "X-Holdfast-Timestamp": stamp,
        "X-Holdfast-Signature": f"sha256={signature(secret, stamp, body)}",
    }
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port, timeout=TIMEOUT_S, context=client_context(channel)
    )
    try:
        with reached(where):
            connection.request("POST", target, body, headers)
            response = connection.getresponse()
            response.read(_ANSWER_BYTES_MAX)
    except http.client.HTTPException as error:
        raise NotifyBusyError(f"{where}: {type(error).__name__}") from error
    finally:
        connection.close()
    if 200 <= response.status < 300:
        return
    kind = NotifyBusyError if response.status >= 500 or response.status in _PASSING else None
    raise (kind or NotifyRefusedError)(f"{where} answers HTTP {response.status}")


def document(message: Message) -> bytes:
    return json.dumps(
        {
            "event": message.event,
            "severity": message.severity,
            "subject": message.subject,
            "text": "\n".join(message.lines),
            "at": message.at.isoformat(),
            "facts": message.facts,
        }
    ).encode()


def signature(secret: Secret, stamp: str, body: bytes) -> str:
    return hmac.new(secret.reveal(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
