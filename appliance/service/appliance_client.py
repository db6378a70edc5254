"""Talking to an appliance elsewhere through its API: https, a token, a certificate that is known.

With a fingerprint, exactly that certificate is accepted, whoever signed it, and nothing is sent
before it was seen; without one, the system's authorities and the name decide. Answers are bounded;
redirections are not followed, they would carry the token elsewhere.

Thread model: a client holds nothing between calls; any thread.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import re
import ssl
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.secret import Secret
from appliance.base.version import __version__

PREFIX = "/api/v1"
_ANSWER_BYTES_MAX = 64 << 20
_ANSWER_S = 120.0
_DEFAULT_PORT = 8443
_HOST = re.compile(r"[\w:%-]{1,63}(\.[\w:%-]{1,63})*\.?")  # a name, IPv4, IPv6 with a zone


class ApplianceUnreachableError(ApplianceError):
    """The appliance of `--appliance` does not answer. Look at its address and at its service."""

    code = "appliance.unreachable"
    retryable = True


class ApplianceCertificateError(ApplianceError):
    """The certificate is not the appliance's; the token was not sent.

    Compare the fingerprint with the one that the appliance's own console shows at its start, then
    give it with `--appliance-fingerprint`.
    """

    code = "appliance.certificate"


class ApplianceRefusedError(ApplianceError):
    """The appliance answered and did not do it; its own words and code are in the message."""

    code = "appliance.refused"


class RunClient(Protocol):
    """What following a run needs: the daemon here (`daemon_client.py`) or one elsewhere."""

    def run_job(self, name: str) -> dict[str, Any]:
        """Let a run of this job begin; return it."""
        ...

    def run(self, run_id: str) -> dict[str, Any]:
        """A run with result and, while it goes on, `live`."""
        ...

    def cancel_run(self, run_id: str) -> None: ...


class ApplianceClient:
    def __init__(self, url: str, token: Secret, fingerprint: str | None = None) -> None:
        """Raises UsageError: not an https address, or not a SHA-256 fingerprint."""
        self._host, self._port = _place(url)
        self._token = token
        self._digest = _digest(fingerprint) if fingerprint else None

    def get(self, *path: str, **query: str | int | None) -> Any:
        """Path parts are names; they are quoted here. Raises as `call`."""
        return self.call("GET", path, query=query)

    def post(self, *path: str, body: Any = None) -> Any:
        return self.call("POST", path, body=body)

    def put(self, *path: str, body: Any) -> Any:
        return self.call("PUT", path, body=body)

    def delete(self, *path: str) -> Any:
        return self.call("DELETE", path)

    def run_job(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.post("jobs", name, "run")
        return answer

    def run(self, run_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.get("runs", run_id)
        return answer

    def cancel_run(self, run_id: str) -> None:
        self.post("runs", run_id, "cancel")

    def call(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, str | int | None] | None = None,
        body: Any = None,
    ) -> Any:
        """Return the answer's document; None: it has none.

        Raises: ApplianceUnreachableError, ApplianceCertificateError, ApplianceRefusedError.
        """
        status, answer = self._answer(method, path, query, body)
        return _document(self._where, status, answer)

    def fetch(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, str | int | None] | None = None,
        body: Any = None,
    ) -> bytes:
        """Return the answer as it comes: a report, a picture. Raises as `call`."""
        status, answer = self._answer(method, path, query, body)
        if not 200 <= status < 300:
            _document(self._where, status, answer)
        return answer

    @property
    def _where(self) -> str:
        return f"{self._host}:{self._port}"

    def _answer(
        self,
        method: str,
        path: tuple[str, ...],
        query: dict[str, str | int | None] | None,
        body: Any,
    ) -> tuple[int, bytes]:
        target = "/".join((PREFIX, *(quote(part, safe="") for part in path)))
        words = {name: value for name, value in (query or {}).items() if value is not None}
        if words:
            target += f"?{urlencode(words)}"
        headers = {
            "Authorization": f"Bearer {self._token.reveal().decode()}",
            "Accept": "application/json",
            "User-Agent": f"Holdfast/{__version__}",
        }
        raw = None
        if body is not None:
            raw = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = _Connection(self._host, self._port, self._digest)
        where = self._where
        try:
            connection.request(method, target, raw, headers)
            response = connection.getresponse()
            answer = response.read(_ANSWER_BYTES_MAX + 1)
        except ssl.SSLCertVerificationError as error:
            raise ApplianceCertificateError(f"{where}: {error.verify_message}") from error
        except (OSError, http.client.HTTPException) as error:
            raise ApplianceUnreachableError(f"{where}: {error}") from error
        finally:
            connection.close()
        if len(answer) > _ANSWER_BYTES_MAX:
            raise ApplianceRefusedError(f"{where} answers more than {_ANSWER_BYTES_MAX} bytes")
        return response.status, answer


class _Connection(http.client.HTTPSConnection):
    def __init__(self, host: str, port: int, digest: bytes | None) -> None:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if digest is not None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        super().__init__(host, port, timeout=_ANSWER_S, context=context)
        self._digest = digest

    def connect(self) -> None:
        super().connect()
        if self._digest is None:
            return
        assert isinstance(self.sock, ssl.SSLSocket)
        shown = hashlib.sha256(self.sock.getpeercert(binary_form=True) or b"").digest()
        if not hmac.compare_digest(shown, self._digest):
            raise ApplianceCertificateError(
                f"{self.host}:{self.port} shows the certificate {_colons(shown)}"
            )


def _document(where: str, status: int, answer: bytes) -> Any:
    if status == 204:
        return None
    try:
        document = json.loads(answer)
    except ValueError as error:
        raise ApplianceRefusedError(f"{where} answers HTTP {status}, and not as the API") from error
    if 200 <= status < 300:
        return document
    if not isinstance(document, dict):
        raise ApplianceRefusedError(f"{where} answers HTTP {status}")
    words = f"{document.get('error')} ({document.get('code')})"
    step = document.get("next_step")
    raise ApplianceRefusedError(f"{words}; {step}" if step else words)


def _place(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        port = parts.port
    except ValueError as error:
        raise UsageError(f"not an address of an appliance: {url!r}") from error
    plain = parts.path in ("", "/") and not (parts.query or parts.username or parts.fragment)
    host = parts.hostname or ""
    if parts.scheme != "https" or not _HOST.fullmatch(host) or not plain:
        raise UsageError(f"not an address of an appliance, such as https://HOST:8443: {url!r}")
    return host, port or _DEFAULT_PORT


def _digest(fingerprint: str) -> bytes:
    digits = re.sub(r"^sha-?256[:=]|[:\s]", "", fingerprint.strip(), flags=re.IGNORECASE)
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digits):
        raise UsageError(f"not a SHA-256 fingerprint: {fingerprint!r}")
    return bytes.fromhex(digits)


def _colons(digest: bytes) -> str:
    return digest.hex(":").upper()
