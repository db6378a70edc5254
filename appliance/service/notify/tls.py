"""TLS towards the servers of notifications: verified, 1.2 and up; and their errors as ours."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.catalog.channel import Channel
from appliance.service.notify.errors import NotifyCertificateError, NotifyUnreachableError

TIMEOUT_S = 20.0
"""For connecting and for each answer."""


def client_context(channel: Channel) -> ssl.SSLContext:
    """Trusts the channel's authority alone, or the system's if it names none."""
    context = ssl.create_default_context(cadata=channel.ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@contextmanager
def reached(where: str) -> Iterator[None]:
    """Raises NotifyCertificateError, NotifyUnreachableError in place of what sockets raise."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise NotifyCertificateError(f"{where}: {error.verify_message}") from error
    except TimeoutError as error:
        raise NotifyUnreachableError(f"{where}: no answer within {TIMEOUT_S:.0f} s") from error
    except UnicodeError as error:  # a name that cannot be looked up
        raise NotifyUnreachableError(f"{where}: {error}") from error
    except OSError as error:  # ssl.SSLError is one
        raise NotifyUnreachableError(f"{where}: {error.strerror or error}") from error
