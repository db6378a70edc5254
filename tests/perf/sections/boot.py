"""Time to readiness of the debian guest, from its raw file and from the repository: over NBD, and
from a LUN over iSCSI.

Both boot in the same sandbox with the same probes. The raw file is a fresh copy per round, in the
page cache; the repository starts with a recovery point that was never booted (no boot profile) and
is then booted again with the profile of that boot. Seconds count from the start of QEMU; what
`verify` does before that is a row of its own. The LUN is a raw one, shown to the sandbox as a file
by QEMU's initiator, which is in the figure.
"""

from __future__ import annotations

from pathlib import Path

from appliance.base.run_context import CancelToken
from appliance.sandbox.boot import boot
from appliance.sandbox.probes import parse_probe
from appliance.sandbox.spec import MachineSpec, RawFile
from lab.guests import GuestKind, build, copy_sparse
from tests.perf import holdfast, sparse
from tests.perf.context import Bench, Figures, Results, alternate
from tests.perf.programs import NotMeasuredError, require
from tests.perf.table import Goal, Ratio, Row
from tests.support.holdfast_program import serving
from tests.support.iscsi_clients import PASSWORD, shown, url

NAME = "boot"
PROBES = ("serial:HOLDFAST-READY debian", "http:80/")
LIMIT_S = 300.0


def run(bench: Bench) -> list[Row]:
    require("qemu-system-x86_64")
    guest = build(GuestKind.DEBIAN)
    sparse.warm(guest)

    def ours(number: int) -> Figures:
        with bench.folder(f"boot-{number}") as folder:
            repository = folder / "repository"
            holdfast.init(repository)
            _, point_id = holdfast.backup(repository, "guest", [guest])
            first = _verify(repository, point_id, folder)
            again = _verify(repository, point_id, folder)
        return {**first, **{f"{name} again": value for name, value in again.items()}}

    def over_iscsi(number: int) -> Figures:
        require("tgtd", "qemu-storage-daemon")
        with bench.folder(f"boot-iscsi-{number}") as folder:
            repository = folder / "repository"
            holdfast.init(repository)
            _, point_id = holdfast.backup(repository, "guest", [guest])
            return {"ready": _boot_lun(repository, point_id, folder)}

    results = alternate(
        bench.rounds,
        {
            "holdfast": ours,
            "raw file": lambda n: _boot_raw(bench, guest, n),
            "iscsi": over_iscsi,
        },
    )
    return _rows(results)


def _boot_raw(bench: Bench, guest: Path, number: int) -> Figures:
    with bench.folder(f"boot-raw-{number}") as folder:
        disk = folder / "disk.raw"
        copy_sparse(guest, disk)
        return {"ready": _ready_s(disk, folder / "artifacts")}


def _boot_lun(repository: Path, point_id: str, folder: Path) -> float:
    secret = folder / "password"
    secret.write_text(PASSWORD)
    words = ("export", "iscsi", point_id, "--raw", "--writable", "--discard", "--port", "0")
    place = ("--password-file", secret, "--repo", repository)
    with (
        serving(folder, *words, *place) as (_, document),
        shown(url(document), folder / "lun") as disk,
    ):
        return _ready_s(disk, folder / "artifacts")


def _ready_s(disk: Path, artifacts: Path) -> float:
    report = boot(
        MachineSpec(disks=(RawFile(path=disk),)),
        [parse_probe(text) for text in PROBES],
        LIMIT_S,
        CancelToken(),
        artifact_folder=artifacts,
    )
    if report.ready_s is None:
        raise NotMeasuredError(f"the guest did not come up from {disk.name}")
    return report.ready_s


def _verify(repository: Path, point_id: str, folder: Path) -> dict[str, float]:
    start, ready = holdfast.verify_boot(repository, point_id, PROBES, folder / "artifacts")
    return {"start": start, "ready": ready}


def _rows(results: Results) -> list[Row]:
    def row(
        measure: str, figure: str, peer: str = "", goal: Goal | None = None, ours: str = "holdfast"
    ) -> Row:
        return Row(
            section=NAME,
            measure=measure,
            unit="s",
            ours=results.value(ours, figure),
            peer=peer,
            theirs=results.value(peer, "ready") if peer else None,
            divide=Ratio.OURS_BY_PEER if peer else Ratio.OURS,
            goal=goal,
        )

    goal = Goal(limit=1.1, at_most=True)
    return [
        row("debian guest ready, first boot", "ready", "raw file", goal),
        row("debian guest ready, with boot profile", "ready again", "raw file", goal),
        row(
            "debian guest ready, over iSCSI",
            "ready",
            "raw file",
            Goal(limit=1.15, at_most=True),
            ours="iscsi",
        ),
        row("from the request to QEMU running", "start"),
    ]
