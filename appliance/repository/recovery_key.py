"""A recovery key as a person copies it from paper: `K7QX-…`, base32 with a checksum.

32 random bytes and the first 3 bytes of their SHA-256 make 56 base32 digits (RFC 4648 alphabet) in
14 groups of four. Spaces, dashes and case do not matter; the digits 0, 1 and 8, which base32 lacks,
are read as the letters O, I and B. A slip of the pen is found with a probability of 1 - 2^-24.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

from appliance.base.errors import UsageError
from appliance.base.secret import Secret

_KEY_BYTES = 32
_CHECK_BYTES = 3
_DIGITS = 56
_LOOK_ALIKES = str.maketrans("018", "OIB")


class RecoveryKeyTextError(UsageError):
    """The recovery key was not copied correctly; compare it with the paper, group by group."""

    code = "repository.recovery-key-text"


def new_recovery_key() -> Secret:
    return Secret(secrets.token_bytes(_KEY_BYTES))


def format_recovery_key(key: Secret) -> str:
    """Return the text to be shown once; whoever has it can read the repository."""
    digits = base64.b32encode(key.reveal() + _check(key.reveal())).decode()
    return "-".join(digits[start : start + 4] for start in range(0, _DIGITS, 4))


def parse_recovery_key(text: str) -> Secret:
    """Raises RecoveryKeyTextError, which never repeats the text."""
    digits = re.sub(r"[\s-]", "", text[: 4 * _DIGITS]).upper().translate(_LOOK_ALIKES)
    if not re.fullmatch(rf"[A-Z2-7]{{{_DIGITS}}}", digits):
        raise RecoveryKeyTextError(f"a recovery key has {_DIGITS} letters and digits 2 to 7")
    raw = base64.b32decode(digits)
    key, check = raw[:_KEY_BYTES], raw[_KEY_BYTES:]
    if _check(key) != check:
        raise RecoveryKeyTextError("the recovery key's checksum is wrong: some group is mistyped")
    return Secret(key)


def _check(key: bytes) -> bytes:
    return hashlib.sha256(b"holdfast recovery key" + key).digest()[:_CHECK_BYTES]
