"""Why a notification was not delivered. The docstrings are what the operator reads."""

from __future__ import annotations

from appliance.base.errors import ApplianceError


class NotifyError(ApplianceError):
    """The notification could not be delivered; the message says why."""

    code = "notify.failed"


class NotifyUnreachableError(NotifyError):
    """The server of the notification channel does not answer; it is tried again for a day.

    Look at its name, its port and the network between.
    """

    code = "notify.unreachable"
    retryable = True


class NotifyCertificateError(NotifyError):
    """The certificate of the notification server cannot be trusted; nothing was sent.

    Give the channel the authority's certificate (`--ca-file`), or the server a certificate that
    carries its name.
    """

    code = "notify.certificate"
    retryable = True


class NotifyLoginError(NotifyError):
    """The mail server refuses user or password; add the channel again with the right ones."""

    code = "notify.login"


class NotifyRefusedError(NotifyError):
    """The server answered and does not take the notification; its words are in the message."""

    code = "notify.refused"


class NotifyBusyError(NotifyError):
    """The server answered that it cannot take the notification now; it is tried again."""

    code = "notify.busy"
    retryable = True
