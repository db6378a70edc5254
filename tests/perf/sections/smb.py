"""A disk file of a Hyper-V host over SMB 3.1.1, signed and encrypted, against smbclient.

A Samba on loopback stands for the host. The file is a dynamic VHDX of random data with holes in it.
`smbclient` gets it to /dev/null and says its rate itself; our transport alone reads the disk inside
as a backup would and discards it. Server and clients share the machine, so the server's share of it
is in every figure.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from pathlib import Path

from appliance.base.units import GIB, MIB
from hyperv.smb_files import Protection
from hyperv.vhdx.shape import VhdxShape
from hyperv.vhdx.writer import DynamicVhdxWriter, FileSink
from tests.perf import holdfast, programs, sparse
from tests.perf.context import Bench, Figures, alternate
from tests.perf.programs import NotMeasuredError
from tests.perf.table import Goal, Ratio, Row
from tests.support.samba import PASSWORD, USER, Samba, samba

NAME = "smb"
DISK_BYTES = 3 * GIB
QUICK_BYTES = GIB
_FILE = "disk.vhdx"
_PIECE_BYTES = 2 * MIB
_HOLE_EVERY = 8  # pieces
_LEAST_SHARE = 0.9  # of the disk; less: something else was read
_WORDS = {Protection.SIGNED: "sign", Protection.ENCRYPTED: "encrypt"}
_RATE = re.compile(r"\(([0-9.]+) KiloBytes/sec\)")


def run(bench: Bench) -> list[Row]:
    programs.require("smbd", "smbpasswd", "smbclient")
    size_bytes = QUICK_BYTES if bench.quick else DISK_BYTES
    with bench.folder(NAME) as folder:
        share = folder / "share"
        share.mkdir()
        _write_disk(bench, share / _FILE, size_bytes)
        sparse.warm(share / _FILE)
        with samba(folder / "samba", {"D$": share}) as server:
            contestants = {}
            for protection in Protection:
                contestants[f"holdfast {protection}"] = lambda _, how=protection: _read(
                    folder, server, how, size_bytes
                )
                contestants[f"smbclient {protection}"] = lambda _, how=protection: _get(
                    folder, server, how
                )
            results = alternate(bench.rounds, contestants)

    def row(measure: str, protection: Protection, figure: str, goal: Goal | None = None) -> Row:
        return Row(
            section=NAME,
            measure=f"{measure}, {protection}",
            unit="MiB/s" if figure == "mib_per_s" else "s",
            ours=results.value(f"holdfast {protection}", figure),
            peer="smbclient",
            theirs=results.value(f"smbclient {protection}", figure),
            divide=Ratio.OURS_BY_PEER,
            goal=goal,
        )

    rows = []
    for protection in Protection:
        rows.append(row("disk file read over SMB", protection, "mib_per_s", Goal(limit=0.8)))
        rows.append(row("processor time of that", protection, "cpu_seconds"))
    return rows


def _write_disk(bench: Bench, path: Path, size_bytes: int) -> None:
    """Every block is there; in each, some pieces are holes of the file."""
    random = bench.random(NAME)
    ids = [uuid.UUID(int=random.getrandbits(128)) for _ in range(3)]
    shape = VhdxShape(
        disk_bytes=size_bytes, disk_id=ids[0], data_write_id=ids[1], file_write_id=ids[2]
    )
    with path.open("w+b") as file:
        writer = DynamicVhdxWriter(FileSink(file.fileno(), sync=False), shape)
        for number in range(size_bytes // _PIECE_BYTES):
            if number % _HOLE_EVERY:
                writer.write_at(number * _PIECE_BYTES, random.randbytes(_PIECE_BYTES))
        writer.finish()
        os.fsync(file.fileno())


def _read(folder: Path, server: Samba, protection: Protection, size_bytes: int) -> Figures:
    asked = folder / "read.json"
    asked.touch(0o600)
    asked.write_text(
        json.dumps(
            {
                "address": "127.0.0.1",
                "port": server.port,
                "user": USER,
                "password": PASSWORD,
                "path": f"D:\\{_FILE}",
                "protection": protection,
            }
        )
    )
    took = programs.run(
        [sys.executable, "-m", "tests.perf.read_smb", asked], environment=holdfast.CHECKOUT
    )
    figures = json.loads(took.stdout)
    if figures.pop("read_bytes") < size_bytes * _LEAST_SHARE:
        raise NotMeasuredError("less than the disk was read")
    return {name: float(value) for name, value in figures.items()}


def _get(folder: Path, server: Samba, protection: Protection) -> Figures:
    """Name and password go through a file: arguments can be seen by everybody."""
    account = folder / "smbclient.auth"
    account.touch(0o600)
    account.write_text(f"username = {USER}\npassword = {PASSWORD}\n")
    words = ["smbclient", "//127.0.0.1/D$", f"--port={server.port}", "-A", account]
    words += [
        f"--client-protection={_WORDS[protection]}",
        f"--configfile={os.devnull}",
        "--debug-stdout",
    ]
    took = programs.run([*words, "-c", f"get {_FILE} {os.devnull}"])
    rate = _RATE.search(took.stdout)
    if rate is None:
        raise NotMeasuredError(f"smbclient printed {took.stdout[-200:]!r}")
    return {"mib_per_s": float(rate[1]) / 1024, "cpu_seconds": took.cpu_seconds}
