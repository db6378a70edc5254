"""`holdfast certificate`: list, show and verify the certificates of verification runs.

`verify` needs nothing but the files: no state folder, no repository, no network.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.cli.options import home_path
from appliance.cli.output import ExitCode, note, show, table

if TYPE_CHECKING:
    from appliance.jobs.certificate import Certificate

_KEY_FILE_LIMIT_BYTES = 16 << 10


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("certificate", help="signed proofs that points can be recovered")
    verbs = group.add_subparsers(metavar="VERB", required=True)
    lister = verbs.add_parser("list", parents=[common], help="certificates, oldest first")
    lister.set_defaults(run=run_list)
    shower = verbs.add_parser("show", parents=[common], help="what one says")
    shower.add_argument("number", type=int, metavar="NUMBER")
    shower.set_defaults(run=run_show)
    verify = verbs.add_parser(
        "verify", parents=[common], help="check files offline: signature, chain, key"
    )
    verify.add_argument("files", nargs="+", type=Path, metavar="FILE")
    verify.add_argument(
        "--key", type=Path, metavar="FILE", help="PEM of the public key that must have signed"
    )
    verify.set_defaults(run=run_verify)
    key = verbs.add_parser("key", parents=[common], help="print the public key")
    key.set_defaults(run=run_key)
    rotate = verbs.add_parser(
        "rotate-key", parents=[common], help="go on with a new key, handed over by the old one"
    )
    rotate.set_defaults(run=run_rotate)


def run_list(args: argparse.Namespace) -> int:
    from appliance.jobs.certificate import CertificateError, read_certificate
    from appliance.jobs.certificate_store import CertificateStore, read_bounded

    documents, rows, code = [], [], ExitCode.SUCCESS
    for path in CertificateStore(home_path(args)).paths():
        try:
            document = _summary(read_certificate(path.name, read_bounded(path)))
        except CertificateError as error:
            note(f"holdfast: [{error.code}] {error}")
            document = {"kind": "refused", "error": {"code": error.code, "message": str(error)}}
            code = ExitCode.FAILED
        documents.append({**document, "path": str(path)})
        rows.append(
            [
                str(document.get("sequence", path.stem.rpartition("-")[2].lstrip("0"))),
                str(document.get("issued_at", "")),
                str(document["kind"]),
                str(document.get("verdict", "")),
                " ".join(document.get("vms", [])),
            ]
        )
    show(args, documents, lambda: table(rows, ["NUMBER", "ISSUED", "KIND", "VERDICT", "VMS"]))
    return code


def run_show(args: argparse.Namespace) -> int:
    from appliance.jobs.certificate import read_certificate
    from appliance.jobs.certificate_store import CertificateStore, read_bounded

    path = CertificateStore(home_path(args)).path(args.number)
    if not path.exists():
        raise UsageError(f"there is no certificate {args.number}")
    certificate = read_certificate(path.name, read_bounded(path))
    document = {
        **_summary(certificate),
        "path": str(path),
        "body": certificate.body.model_dump(mode="json"),
    }
    show(args, document, lambda: "\n".join(_lines(certificate)))
    return ExitCode.SUCCESS


def run_verify(args: argparse.Namespace) -> int:
    from appliance.jobs.certificate_chain import verify_chain
    from appliance.jobs.certificate_store import read_bounded

    if len(set(args.files)) != len(args.files):
        raise UsageError("a file is named twice")
    files = {str(path): _read(path, read_bounded) for path in args.files}
    trusted = _read_key(args.key) if args.key else None
    chain = verify_chain(files, trusted)
    if trusted is None:
        note(
            "the signature is that of the key in the certificate; give --key, or compare its "
            "fingerprint with the one that the appliance shows"
        )
    document = {
        "verified": True,
        "trust": "key-given" if trusted else "key-in-certificate",
        "keys": [fingerprint(key) for key in chain.keys],
        "certificates": [_summary(certificate) for certificate in chain.certificates],
    }
    show(args, document, lambda: _verified_text(chain.certificates, chain.keys))
    return ExitCode.SUCCESS


def run_key(args: argparse.Namespace) -> int:
    from appliance.jobs.certificate_store import CertificateStore
    from appliance.service.home import Home

    Home(home_path(args)).prepare()
    key = CertificateStore(home_path(args)).signing_key()
    pem = key.public_pem.decode()
    document = {"fingerprint": fingerprint(key.public_key), "public_key_pem": pem}
    note(f"fingerprint {fingerprint(key.public_key)}")
    show(args, document, pem.rstrip)
    return ExitCode.SUCCESS


def run_rotate(args: argparse.Namespace) -> int:
    from appliance.jobs.certificate_store import CertificateStore
    from appliance.service.home import Home

    Home(home_path(args)).prepare()
    store = CertificateStore(home_path(args))
    issued = store.rotate()
    shown = fingerprint(store.signing_key().public_key)
    document = {"sequence": issued.sequence, "path": str(issued.path), "fingerprint": shown}
    show(args, document, lambda: f"certificate {issued.sequence} hands over to key {shown}")
    return ExitCode.SUCCESS


def fingerprint(public_key: bytes) -> str:
    """SHA-256 of the 32 bytes of the key, as hex."""
    return hashlib.sha256(public_key).hexdigest()


def _read(path: Path, read: Any) -> bytes:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    raw: bytes = read(path)
    return raw


def _read_key(path: Path) -> bytes:
    """The raw public key of a PEM file. Raises UsageError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        with path.open("rb") as file:
            key = load_pem_public_key(file.read(_KEY_FILE_LIMIT_BYTES))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path}: not a public key in PEM form") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: not an Ed25519 key")
    return key.public_bytes_raw()


def _summary(certificate: Certificate) -> dict[str, Any]:
    from appliance.jobs.certificate import VerificationBody

    body = certificate.body
    document: dict[str, Any] = {
        "sequence": body.sequence,
        "kind": body.kind,
        "issued_at": body.issued_at.isoformat(),
        "key": fingerprint(certificate.public_key),
        "sha256": certificate.sha256,
    }
    if isinstance(body, VerificationBody):
        document |= {
            "verdict": body.verdict.value,
            "run_id": body.run_id,
            "vms": [guest.vm for guest in body.guests],
            "points": [guest.point_id for guest in body.guests],
        }
    return document


def _verified_text(certificates: Sequence[Certificate], keys: Sequence[bytes]) -> str:
    lines = [line for certificate in certificates for line in _lines(certificate)]
    lines += [f"genuine under key {fingerprint(key)}" for key in keys]
    return "\n".join(lines)


def _lines(certificate: Certificate) -> list[str]:
    from appliance.jobs.certificate import VerificationBody

    body = certificate.body
    if not isinstance(body, VerificationBody):
        successor = fingerprint(bytes.fromhex(body.new_public_key))
        return [f"certificate {body.sequence}, {body.issued_at:%F %T}: new key {successor}"]
    lines = [f"certificate {body.sequence}, {body.issued_at:%F %T}: {body.verdict}"]
    for guest in body.guests:
        lines.append(f"  {guest.vm} {guest.point_id}: {guest.verdict}")
        lines += [
            f"    {stage.stage}: {stage.verdict}"
            + (f" ({stage.reason})" if stage.reason else f" in {stage.milliseconds / 1000:.1f} s")
            for stage in guest.stages
        ]
    return lines
