"""Requests that a correct client would never send, through libnbd with its checks turned off.

Run by Debian's Python (its libnbd binding belongs to it): URI of a writable export, URI of a
read-only one; both of 1 MiB. Prints one line per answer that was as expected; exits 1 otherwise.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

import nbd

SIZE = 1 << 20


def connect(uri: str, *, structured: bool = True) -> nbd.NBD:
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_request_structured_replies(structured)
    handle.add_meta_context("base:allocation")
    handle.connect_uri(uri)
    return handle


def expect(what: str, number: int, call: Callable[[], object]) -> None:
    try:
        call()
    except nbd.Error as error:
        got = error.errnum
    else:
        got = 0
    if got != number:
        sys.exit(f"{what}: {errno.errorcode.get(got, got)} instead of {errno.errorcode[number]}")
    print(f"{what}: {errno.errorcode[number]}")


def check_writable(handle: nbd.NBD, form: str) -> None:
    expect(f"{form} read behind the end", errno.EINVAL, lambda: handle.pread(512, SIZE))
    expect(f"{form} read over the end", errno.EINVAL, lambda: handle.pread(513, SIZE - 512))
    expect(f"{form} read far away", errno.EINVAL, lambda: handle.pread(1, 1 << 62))
    expect(f"{form} write behind the end", errno.ENOSPC, lambda: handle.pwrite(bytes(512), SIZE))
    expect(
        f"{form} write over the end", errno.ENOSPC, lambda: handle.pwrite(bytes(513), SIZE - 512)
    )
    expect(f"{form} zero over the end", errno.ENOSPC, lambda: handle.zero(513, SIZE - 512))
    expect(f"{form} trim over the end", errno.EINVAL, lambda: handle.trim(513, SIZE - 512))
    expect(f"{form} cache over the end", errno.EINVAL, lambda: handle.cache(513, SIZE - 512))
    expect(f"{form} read with odd flags", errno.EINVAL, lambda: handle.pread(512, 0, 1 << 9))
    expect(
        f"{form} write with DF", errno.EINVAL, lambda: handle.pwrite(bytes(9), 0, nbd.CMD_FLAG_DF)
    )
    expect(f"{form} write with odd flags", errno.EINVAL, lambda: handle.pwrite(bytes(9), 0, 0x80))
    expect(f"{form} flush with odd flags", errno.EINVAL, lambda: handle.flush(1 << 4))
    expect(
        f"{form} fast zero that may leave no hole",
        errno.ENOTSUP,
        lambda: handle.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE),
    )
    expect(f"{form} read above 32 MiB", errno.EINVAL, lambda: handle.pread((32 << 20) + 1, 0))
    too_much = bytes((32 << 20) + 1)
    expect(f"{form} write above 32 MiB", errno.EINVAL, lambda: handle.pwrite(too_much, 0))
    expect(
        f"{form} status of nothing",
        errno.EINVAL,
        lambda: handle.block_status(0, 0, lambda *found: 0),
    )


def check_still_usable(handle: nbd.NBD) -> None:
    handle.pwrite(b"still here", 100)
    if handle.pread(10, 100) != b"still here":
        sys.exit("the connection is out of step")
    handle.flush()


def check_read_only(handle: nbd.NBD, form: str) -> None:
    expect(f"{form} read-only write", errno.EPERM, lambda: handle.pwrite(bytes(9), 0))
    expect(f"{form} read-only trim", errno.EPERM, lambda: handle.trim(512, 0))
    expect(f"{form} read-only zero", errno.EPERM, lambda: handle.zero(512, 0))
    handle.flush()
    handle.pread(512, SIZE - 512)


def main(writable: str, read_only: str) -> None:
    for structured in (True, False):
        form = "structured" if structured else "simple"
        handle = connect(writable, structured=structured)
        check_writable(handle, form)
        check_still_usable(handle)
        handle.shutdown()
        handle = connect(read_only, structured=structured)
        check_read_only(handle, form)
        handle.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
