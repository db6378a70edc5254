"""One notification as an e-mail, by SMTP over TLS (RFC 5321, 3207, 8314).

There is no way without TLS: user, password and the names of VMs are in it.
Thread model: blocks; any thread.
"""

from __future__ import annotations

import smtplib
from contextlib import suppress
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

from appliance.base.secret import Secret
from appliance.base.version import __version__
from appliance.catalog.channel import EmailChannel, MailSecurity, Message, Severity
from appliance.service.notify.errors import (
    NotifyBusyError,
    NotifyError,
    NotifyLoginError,
    NotifyRefusedError,
)
from appliance.service.notify.tls import TIMEOUT_S, client_context, reached

_WORDS_CHARS_MAX = 300


def send_email(channel: EmailChannel, secret: Secret | None, message: Message) -> None:
    """Raises NotifyError: nobody got it, or (notify.refused) some recipients did not."""
    where = f"{channel.server} port {channel.port}"
    with reached(where):
        try:
            smtp = _connected(channel)
            try:
                if channel.user is not None and secret is not None:
                    smtp.login(channel.user, secret.reveal().decode())
                refused = smtp.send_message(
                    mail(channel, message), channel.sender, list(channel.recipients)
                )
            finally:
                with suppress(smtplib.SMTPException, OSError):
                    smtp.quit()
        except smtplib.SMTPException as error:
            raise _translated(where, error) from error
    if refused:
        raise NotifyRefusedError(f"{where} refuses {', '.join(sorted(refused))}")


def mail(channel: EmailChannel, message: Message) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = message.subject
    mail["From"] = channel.sender
    mail["To"] = ", ".join(channel.recipients)
    mail["Date"] = format_datetime(message.at)
    mail["Message-ID"] = make_msgid(domain=channel.sender.rpartition("@")[2])
    mail["X-Mailer"] = f"Holdfast {__version__}"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday notice answers
    if message.severity is Severity.ERROR:
        mail["Importance"] = "high"
    mail.set_content("\n".join(message.lines) + "\n")
    return mail


def _connected(channel: EmailChannel) -> smtplib.SMTP:
    context = client_context(channel)
    if channel.security is MailSecurity.TLS:
        return smtplib.SMTP_SSL(channel.server, channel.port, timeout=TIMEOUT_S, context=context)
    smtp = smtplib.SMTP(channel.server, channel.port, timeout=TIMEOUT_S)
    try:
        smtp.starttls(context=context)
    except BaseException:
        smtp.close()
        raise
    return smtp


def _translated(where: str, error: smtplib.SMTPException) -> NotifyError:
    """Replies of the 400s are passing, of the 500s for good (RFC 5321, section 4.2.1)."""
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return NotifyRefusedError(f"{where}: {error}")
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = {code for code, _ in error.recipients.values()}
        names = ", ".join(sorted(error.recipients))
        kind = NotifyRefusedError if max(codes) >= 500 else NotifyBusyError
        return kind(f"{where} refuses {names}: {_words(next(iter(error.recipients.values()))[1])}")
    if isinstance(error, smtplib.SMTPResponseException):
        words = f"{where} answers {error.smtp_code} {_words(error.smtp_error)}"
        if isinstance(error, smtplib.SMTPAuthenticationError) and error.smtp_code >= 500:
            return NotifyLoginError(words)
        return (NotifyRefusedError if error.smtp_code >= 500 else NotifyBusyError)(words)
    return NotifyBusyError(f"{where}: {error or type(error).__name__}")


def _words(raw: bytes | str) -> str:
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return " ".join(text.split())[:_WORDS_CHARS_MAX]
