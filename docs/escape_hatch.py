"""Write a disk of a recovery point to a file, with nothing but docs/format.md in hand.

    python escape_hatch.py REPOSITORY POINT_ID DISK OUTPUT [PASSPHRASE_FILE]

For the day on which Holdfast itself cannot be had. It imports nothing of it, takes the whole index
into memory and proves no digest; CRCs and encryption tags are what it checks. Needs the packages
zstandard and, for an encrypted repository, cryptography (docs/format.md, sections 2 to 6).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from struct import iter_unpack, unpack, unpack_from

import zstandard

Place = tuple[Path, int, int]


def record_key(repository: Path, passphrase: bytes) -> bytes:
    """Unwrap the data key with the passphrase (section 6) and derive the record key."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    identity = json.loads((repository / "config.json").read_bytes())["repository_id"]
    slot = json.loads(next((repository / "keys").glob("passphrase-*.json")).read_bytes())
    cost, salt = slot["scrypt"], bytes.fromhex(slot["salt"])
    wrapping_key = hashlib.scrypt(passphrase, salt=salt, **cost, maxmem=1 << 30, dklen=32)
    data_key = AESGCM(wrapping_key).decrypt(
        bytes.fromhex(slot["nonce"]),
        bytes.fromhex(slot["key"]),
        f"holdfast key slot\n{identity}\npassphrase".encode(),
    )
    return HKDF(SHA256(), 32, None, b"holdfast/1/record key").derive(data_key)


def unpack_payload(payload: bytes, flags: int, key: bytes | None, associated: bytes) -> bytes:
    if flags & 2:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if key is None:
            raise SystemExit("the repository is encrypted: name a passphrase file")
        payload = AESGCM(key).decrypt(payload[:12], payload[12:], associated)
    return zstandard.ZstdDecompressor().decompress(payload) if flags & 1 else payload


def manifest(repository: Path, point_id: str, key: bytes | None) -> dict[str, list[dict[str, str]]]:
    """Section 5. Its digest in the associated data is the plain BLAKE3 of the blob's name."""
    name = f"points/{point_id}.point"
    blob = (repository / name).read_bytes()
    _, _, flags, _ = unpack_from("<8sHHI", blob)
    associated = b""
    if flags & 2:
        from blake3 import blake3

        associated = b"\x80" + blake3(name.encode()).digest()
    document: dict[str, list[dict[str, str]]] = json.loads(
        unpack_payload(blob[16:-32], flags, key, associated)
    )
    return document


def places(repository: Path) -> dict[bytes, Place]:
    """Section 2: where each record lies, from the footers."""
    found = {}
    for pack in sorted((repository / "packs").glob("*/*.pack")):
        data = pack.read_bytes()
        count, _, offset, magic = unpack("<IIQ8s", data[-24:])
        if magic != b"HFfooter":
            sys.stderr.write(f"{pack}: no footer, left out\n")
            continue
        for digest, at, stored, _, _, _ in iter_unpack(
            "<32sIIIBB2x", data[offset : offset + count * 48]
        ):
            found[digest] = (pack, at, stored)
    return found


def load(place: Place, key: bytes | None) -> bytes:
    pack, offset, stored = place
    with pack.open("rb") as file:
        file.seek(offset)
        record = file.read(stored)
    _, kind, flags, _, digest, _, _, _, _ = unpack_from("<4sBBH32sIIII", record)
    return unpack_payload(record[56:], flags, key, bytes((kind,)) + digest)


def main() -> None:
    repository, point_id = Path(sys.argv[1]), sys.argv[2]
    number, output = int(sys.argv[3]), Path(sys.argv[4])
    key = None
    if len(sys.argv) > 5:
        key = record_key(repository, Path(sys.argv[5]).read_bytes().split(b"\n", 1)[0])
    document = manifest(repository, point_id, key)
    disk = next(disk for disk in document["disks"] if int(disk["number"]) == number)
    where = places(repository)
    with output.open("wb") as file:
        todo = [(bytes.fromhex(disk["root_hex"]), 3, 0)]  # digest, level, first segment
        while todo:
            node, level, segment = todo.pop()
            if node == bytes(32):
                continue
            entries = load(where[node], key)[8:]
            if level:  # section 4
                span = 1024 ** (level - 1)
                for child, digest in iter_unpack("<H2x32s", entries):
                    todo.append((digest, level - 1, segment + child * span))
                continue
            for first, _, digest in iter_unpack("<HH32s", entries):
                file.seek(segment * (8 << 20) + first * 4096)
                file.write(load(where[digest], key))
        file.truncate(int(disk["size_bytes"]))


if __name__ == "__main__":
    main()
