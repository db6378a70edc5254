"""The proofs of verification runs, for API and UI: certificates, their chain, and their evidence.

Evidence is found by what the certificate says of it: only a file whose hash is signed is shown.
Thread model: any thread; reads files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from appliance.catalog.errors import CatalogError
from appliance.jobs.certificate import (
    Certificate,
    VerificationBody,
    read_certificate,
)
from appliance.jobs.certificate_chain import Chain, verify_chain
from appliance.jobs.certificate_store import CertificateStore, read_bounded

_EVIDENCE_BYTES_MAX = 16 << 20
_REPORT_BYTES_MAX = 64 << 20
_FILES_MOST = 4096
_REPORT = "report.html"


class ProofNotFoundError(CatalogError):
    """There is no such certificate or evidence here; evidence is removed after a while."""

    code = "proof.not-found"


class Proofs:
    def __init__(self, home: Path) -> None:
        self._store = CertificateStore(home)
        self._folder = home / "verify"

    def raw(self, sequence: int) -> bytes:
        """The file as it was issued, to be checked anywhere. Raises ProofNotFoundError."""
        path = self._store.path(sequence)
        if not path.is_file():
            raise ProofNotFoundError(f"no certificate {sequence}")
        return read_bounded(path)

    def get(self, sequence: int) -> Certificate:
        """Raises: ProofNotFoundError, CertificateError."""
        return read_certificate(self._store.path(sequence).name, self.raw(sequence))

    def check(self) -> Chain | None:
        """The whole chain, checked; None: there is none. Raises CertificateError, StorageError."""
        files = {path.name: read_bounded(path) for path in self._store.paths()}
        return verify_chain(files, None) if files else None

    def evidence(self, sequence: int, sha256: str) -> tuple[str, bytes]:
        """Name and content of a file that the certificate names. Raises: as `get`."""
        body = self.get(sequence).body
        if not isinstance(body, VerificationBody):
            raise ProofNotFoundError(f"certificate {sequence} is about no run")
        for guest in body.guests:
            for kept in guest.evidence:
                if kept.sha256 != sha256 or kept.size_bytes > _EVIDENCE_BYTES_MAX:
                    continue
                for raw in self._files(body.run_id, kept.name, kept.size_bytes):
                    if hashlib.sha256(raw).hexdigest() == sha256:
                        return kept.name, raw
        raise ProofNotFoundError(f"no evidence {sha256[:16]} of certificate {sequence} is kept")

    def report(self, sequence: int) -> bytes:
        """The page that the run left. Raises: as `get`."""
        body = self.get(sequence).body
        for raw in self._files(getattr(body, "run_id", ""), _REPORT, None):
            return raw
        raise ProofNotFoundError(f"the report of certificate {sequence} is not kept")

    def _files(self, run_id: str, name: str, size_bytes: int | None) -> Iterator[bytes]:
        """Files of the run's folder by their own name; nothing outside of it is followed."""
        folder = self._folder / run_id
        if not run_id or folder.parent != self._folder or run_id in (".", ".."):
            return
        seen = 0
        for place, _, names in os.walk(folder, followlinks=False):
            for each in names:
                seen += 1
                path = Path(place) / each
                if seen > _FILES_MOST:
                    return
                if each != name or path.is_symlink():
                    continue
                try:
                    size = path.stat().st_size
                    if size > _REPORT_BYTES_MAX or size_bytes not in (None, size):
                        continue
                    yield path.read_bytes()
                except OSError:
                    continue  # removed meanwhile
