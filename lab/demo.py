"""`make demo`: the main job on a real guest, in under five minutes on two cores without KVM.

Builds a Debian guest, backs it up, lets it run and change files, backs it up again, boots the
second point from the repository, fetches a page from its nginx, restores the first point to a
file and boots that too. Everything of Holdfast is done with the command line, as an administrator
would; each command is shown.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from appliance.base.run_context import CancelToken
from appliance.base.units import format_duration, format_size
from appliance.sandbox.boot import BootReport, boot
from appliance.sandbox.machine import Machine
from appliance.sandbox.probes import parse_probe
from appliance.sandbox.spec import MachineSpec, RawFile
from lab.guests import GuestKind, build, copy_sparse

_PROBES = ("serial:HOLDFAST-READY debian", "http:80/")
_BOOT_LIMIT_S = 180.0
_CHANGE_MIB = 48


class Demo:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._repo = folder / "repository"
        self._disk = folder / "web.raw"
        self._step = 0

    def run(self) -> None:
        self.say("a Debian 12 guest with systemd and nginx (built once, then cached)")
        copy_sparse(build(GuestKind.DEBIAN), self._disk)
        self.holdfast("repo", "init")

        self.say("first backup")
        first = self.back_up()
        self.say(f"the guest runs and writes {_CHANGE_MIB} MiB of files")
        self.let_guest_change_files()
        self.say("second backup: only what changed goes into the repository")
        second = self.back_up()

        self.say("boot the second point from the repository, in isolation")
        verified = self.verify(second["point_id"])
        self.holdfast_text("repo", "stats")

        self.say("restore the first point to a file, and boot that too")
        restored = self._folder / "restored.raw"
        self.holdfast("restore", "image", first["point_id"], "-o", str(restored))
        report = self.boot_file(restored)

        changed = second["disks"][0]
        print(
            f"\nDone. The second backup found {format_size(changed['changed_bytes'])} changed and "
            f"added {format_size(changed['stored_bytes'])}; the guest was back "
            f"{format_duration(verified['start_seconds'] + verified['ready_seconds'])} after the "
            f"request, straight from its backup, having read "
            f"{format_size(verified['read_bytes'])} of {format_size(changed['size_bytes'])}; the "
            f"restored file was ready after {format_duration(report.ready_s or 0)}.\n"
            f"Screenshot: {verified['screenshot_path']}"
        )

    def say(self, text: str) -> None:
        self._step += 1
        print(f"\n{self._step}. {text}", flush=True)

    def back_up(self) -> dict[str, Any]:
        document: dict[str, Any] = self.holdfast("backup", "image", "--vm", "web", str(self._disk))
        disk = document["disks"][0]
        print(
            f"   read {format_size(disk['read_bytes'])}, "
            f"changed {format_size(disk['changed_bytes'])}, new {format_size(disk['new_bytes'])}, "
            f"stored {format_size(disk['stored_bytes'])} in {format_duration(document['seconds'])}"
        )
        return document

    def verify(self, point_id: str) -> dict[str, Any]:
        probes = [word for probe in _PROBES for word in ("--probe", probe)]
        artifacts = Path("build") / "demo"
        document: dict[str, Any] = self.holdfast(
            "verify", point_id, "--boot", *probes, "--artifacts", str(artifacts.absolute())
        )
        for probe in document["probes"]:
            print(f"   {probe['probe']}: {probe['detail']} after {probe['seconds']:.1f} s")
        return document

    def let_guest_change_files(self) -> None:
        with Machine(MachineSpec(disks=(RawFile(path=self._disk),)), self._folder) as guest:
            _wait_for(guest, "HOLDFAST-READY debian", _BOOT_LIMIT_S)
            guest.send_line(f"change {_CHANGE_MIB}")
            _wait_for(guest, "CHANGED", _BOOT_LIMIT_S)
            guest.power_off(60)

    def boot_file(self, disk: Path) -> BootReport:
        probes = [parse_probe(text) for text in _PROBES]
        report = boot(
            MachineSpec(disks=(RawFile(path=disk),)),
            probes,
            _BOOT_LIMIT_S,
            CancelToken(),
            artifact_folder=self._folder / "restored",
        )
        if not report.ok:
            raise SystemExit(f"the restored guest did not come up: {report.probes}")
        print(f"   ready after {format_duration(report.ready_s or 0)}")
        return report

    def holdfast(self, *words: str) -> Any:
        """Run `holdfast … --json`, shown; return its document, or end the demo."""
        print(f"   $ holdfast {' '.join(words)} --repo {self._repo}", flush=True)
        command = [sys.executable, "-m", "appliance.cli.main", *words, "--repo", str(self._repo)]
        done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=False)
        if done.returncode not in (0, 3):
            raise SystemExit(f"holdfast {words[0]} failed: {done.stdout.decode()}")
        return json.loads(done.stdout)

    def holdfast_text(self, *words: str) -> None:
        print(f"   $ holdfast {' '.join(words)} --repo {self._repo}", flush=True)
        command = [sys.executable, "-m", "appliance.cli.main", *words, "--repo", str(self._repo)]
        text = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()
        print("".join(f"   {line}\n" for line in text.splitlines()), end="")


def _wait_for(guest: Machine, text: str, limit_s: float) -> None:
    """Wait until the guest has said `text` on its serial line."""
    probe = parse_probe(f"serial:{text}")
    deadline_s = time.monotonic() + limit_s
    while not probe.attempt(guest).ok:
        if time.monotonic() > deadline_s or not guest.running:
            raise SystemExit(f"the guest did not say {text!r}")
        guest.wait(0.1)


def main() -> None:
    started_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    try:
        Demo(folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Demo took {format_duration(time.monotonic() - started_s)}.")


if __name__ == "__main__":
    main()
