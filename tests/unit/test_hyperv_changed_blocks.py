"""What a Hyper-V host says has changed, and when it is not believed."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperv.changed_blocks import Baseline, Changed, FullRead, changed_ranges
from hyperv.errors import HypervError, ScriptError, UnreachableError
from hyperv.script_types import CheckpointDisk
from tests.support.fake_hyperv_session import FakeHypervSession, quick_patience
from tests.support.hyperv_disk_values import disk_file

GIB = 1 << 30
SIZE = 10 * GIB
BASE = Baseline(rct_id="rctX:1", virtual_disk_id="disk-1", size_bytes=SIZE, frozen_name="web.vhdx")


def disk(*names: str, size_bytes: int = SIZE, disk_id: str = "disk-1") -> CheckpointDisk:
    files = [
        disk_file(f"D:\\VM\\{name}", disk_id=disk_id, size_bytes=size_bytes)
        for name in names or ("web.vhdx",)
    ]
    return CheckpointDisk(
        attachment="Microsoft:A\\83F8638B\\0\\0\\D",
        virtual_disk_id=disk_id,
        controller="scsi",
        controller_number=0,
        location=0,
        chain=files,
    )


def answer(
    ranges: Sequence[tuple[int, int]], processed_bytes: int, *, job_id: str = ""
) -> dict[str, Any]:
    raw = b"".join(struct.pack("<QQ", *each) for each in ranges)
    return {
        "processed_bytes": processed_bytes,
        "count": len(ranges),
        "ranges": base64.b64encode(raw).decode(),
        "job_id": job_id,
    }


def asked(handler: Any, base: Baseline = BASE, of: CheckpointDisk | None = None, **how: Any) -> Any:
    session = FakeHypervSession({"changed_ranges": handler})
    found = changed_ranges(session, of or disk(), base, quick_patience(), **how)
    return found, session


def test_a_disk_is_asked_about_in_regions_that_are_never_all_of_it() -> None:
    """The first is shortened by a sector when one would do, and progress is the host's."""
    found, session = asked(lambda p: answer([], p["length"]))
    assert found == Changed(ranges=())
    assert [(p["offset"], p["length"]) for p in session.named("changed_ranges")] == [
        (0, SIZE - 512),
        (SIZE - 512, 512),
    ]
    found, session = asked(lambda p: answer([], min(p["length"], GIB)), region_bytes=3 * GIB)
    offsets = [p["offset"] for p in session.named("changed_ranges")]
    assert offsets == [n * GIB for n in range(10)]


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=12))
def test_ranges_come_sorted_disjoint_and_inside_the_disk(raw: list[tuple[int, int]]) -> None:
    """And cover exactly what the host said, as far as it lies inside the disk."""
    found, _ = asked(
        lambda p: answer(raw if p["offset"] == 0 else [], p["length"]),
        replace(BASE, size_bytes=128 * 512),
        disk(size_bytes=128 * 512),
    )
    assert isinstance(found, Changed)
    covered = [byte for offset, length in found.ranges for byte in range(offset, offset + length)]
    wanted = {byte for o, n in raw for byte in range(o, min(o + n, 128 * 512))}
    assert covered == sorted(wanted)
    assert all(a[0] + a[1] < b[0] for a, b in zip(found.ranges, found.ranges[1:], strict=False))


def test_an_answer_that_comes_later_is_asked_for_again() -> None:
    """A job is waited for; its result is not in it."""
    answers = iter([answer([], 0, job_id="job"), answer([(0, 512)], SIZE - 512), answer([], 512)])
    session = FakeHypervSession(
        {
            "changed_ranges": lambda _p: next(answers),
            "job_state": lambda _p: {
                "found": True,
                "state": 7,
                "percent": 100,
                "error_code": 0,
                "error": "",
                "description": "",
                "checkpoints": [],
                "reference_points": [],
            },
        }
    )
    found = changed_ranges(session, disk(), BASE, quick_patience())
    assert found == Changed(ranges=((0, 512),))


@pytest.mark.parametrize(
    ("base", "of", "code"),
    [
        (replace(BASE, rct_id=""), disk(), "rct.no-reference-point"),
        (BASE, disk(disk_id="disk-2"), "rct.other-disk"),
        (BASE, disk(size_bytes=SIZE + 512), "rct.resized"),
        (BASE, disk("web_A.avhdx", "other.vhdx"), "rct.other-chain"),
        (replace(BASE, frozen_name=""), disk(), "rct.other-chain"),
    ],
)
def test_a_disk_that_may_be_another_is_not_asked_about(
    base: Baseline, of: CheckpointDisk, code: str
) -> None:
    """A full read with its reason, without a call."""
    found, session = asked(lambda _p: answer([], 0), base, of)
    assert isinstance(found, FullRead) and found.finding.code == code
    assert session.calls == []


def test_a_user_checkpoint_above_the_frozen_file_is_no_obstacle() -> None:
    """The file that was frozen is still a parent."""
    found, _ = asked(lambda p: answer([], p["length"]), BASE, disk("web_A.avhdx", "WEB.VHDX"))
    assert isinstance(found, Changed)


@pytest.mark.parametrize(
    ("handler", "code"),
    [
        (lambda _p: ScriptError("no", wmi_return=32773), "rct.refused"),
        (lambda _p: answer([], 0), "rct.not-believed"),
        (lambda p: answer([], p["length"] + 1), "rct.not-believed"),
        (lambda p: answer([(0, 1)], p["length"]) | {"count": 2}, "rct.not-believed"),
        (lambda p: answer([], p["length"]) | {"ranges": "!!"}, "rct.not-believed"),
        (lambda _p: answer([], 0, job_id=""), "rct.not-believed"),
    ],
)
def test_an_answer_that_cannot_be_had_or_believed_is_a_full_read(handler: Any, code: str) -> None:
    """Reading too much is never wrong."""
    found, _ = asked(handler)
    assert isinstance(found, FullRead) and found.finding.code == code


def test_a_host_that_is_gone_is_an_error() -> None:
    """Then nothing could be read either."""
    with pytest.raises(HypervError):
        asked(lambda _p: UnreachableError("gone"))
