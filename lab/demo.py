"""`make demo`: the main job on the practice vCenter, in under five minutes on two cores, no KVM.

A vCenter with a running Debian guest; Holdfast is given it, protects the guest, protects it again
after it has changed, proves the second backup by booting it in isolation, runs it on the hypervisor
straight from the repository and moves it to production storage while it runs, and restores the
first one as a new VM. Everything of Holdfast is done with the command line, as an administrator
would; each command is shown.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.base.units import format_duration, format_size
from lab.control_socket import ask
from lab.lab_folder import LabFolder

_GUEST = "debian"
_INSTANT = "debian-instant"
_PROBES = ("serial:HOLDFAST-READY debian", "http:80/")
_READY_LIMIT_S = 180.0
_CHANGE_MIB = 48
_WARNINGS = 3  # exit code of a command that finished with warnings


class Demo:
    def __init__(self, folder: Path) -> None:
        self._home = folder
        self._environment = {**os.environ, "HOLDFAST_HOME": str(folder)}
        self._step = 0

    def run(self) -> None:
        self.say("a practice vCenter: two hosts, two datastores, a running Debian 12 with nginx")
        lab = self.holdfast("lab", "up", "--guests", _GUEST)
        self.page(_GUEST)
        try:
            self.protect(lab["vcenter"])
        finally:
            self.holdfast("lab", "down")

    def protect(self, vcenter: dict[str, Any]) -> None:
        self.say("Holdfast is told of the vCenter; its certificate is pinned")
        password = self._home / "password"
        password.write_text(vcenter["password"])
        address = f"{vcenter['address']}:{vcenter['port']}"
        login = ("--user", vcenter["user"], "--password-file", str(password))
        pin = ("--accept-fingerprint", vcenter["fingerprint"])
        self.holdfast(
            "host", "add", "practice", "--type", "vsphere", "--address", address, *login, *pin
        )
        self.holdfast("repo", "init")
        self.holdfast_text("vm", "list")

        self.say("first backup, while the guest runs")
        first = self.back_up()
        self.say(f"the guest writes {_CHANGE_MIB} MiB of files; its page changes")
        self.let_guest_change_files()
        self.say("second backup: the hypervisor says what changed, and only that is read")
        second = self.back_up()

        self.say("proof: the second point boots from the repository, in isolation")
        verified = self.verify(second["point_id"])

        self.say("outage: the second point runs on the hypervisor, straight from the repository")
        with self.daemon():
            started = self.start_instantly(second["point_id"])
            self.say("while it runs, its disks move to production storage")
            self.holdfast("instant", "finalise", started["session_id"])
            print(f"   page: {self.page(_INSTANT)}")

        self.say("disaster: the first point becomes a new VM on the hypervisor")
        seconds = self.restore(first["point_id"])
        self.holdfast_text("repo", "stats")

        disk = second["disks"][0]
        print(
            f"\nDone. The second backup read {format_size(disk['read_bytes'])} of "
            f"{format_size(disk['size_bytes'])} and added {format_size(disk['stored_bytes'])}. "
            f"Booted from its backup, the guest was ready "
            f"{format_duration(verified['start_seconds'] + verified['ready_seconds'])} after the "
            f"request; on the hypervisor, it was powered on {_until_power_on(started):.1f} s after "
            f"the request; restored as a new VM, it answered after {format_duration(seconds)}.\n"
            f"Screenshot: {verified['screenshot_path']}"
        )

    def say(self, text: str) -> None:
        self._step += 1
        print(f"\n{self._step}. {text}", flush=True)

    def back_up(self) -> dict[str, Any]:
        document = self.holdfast("backup", "vm", _GUEST)
        vm: dict[str, Any] = document["vms"][0]
        disk = vm["disks"][0]
        print(
            f"   {vm['consistency']}-consistent, {disk['mode']} through {disk['transport']}: "
            f"read {format_size(disk['read_bytes'])}, new {format_size(disk['new_bytes'])}, "
            f"stored {format_size(disk['stored_bytes'])} in {format_duration(vm['seconds'])}"
        )
        return vm

    def let_guest_change_files(self) -> None:
        socket_path = LabFolder(self._home / "lab").socket_path
        assert socket_path is not None, "the lab runs"
        ask(socket_path, "console", vm=_GUEST, line=f"change {_CHANGE_MIB}", expect="CHANGED")
        print(f"   page: {self.page(_GUEST)}")

    def verify(self, point_id: str) -> dict[str, Any]:
        probes = [word for probe in _PROBES for word in ("--probe", probe)]
        artifacts = Path("build") / "demo"
        document: dict[str, Any] = self.holdfast(
            "verify", point_id, "--boot", *probes, "--artifacts", str(artifacts.absolute())
        )
        for probe in document["probes"]:
            print(f"   {probe['probe']}: {probe['detail']} after {probe['seconds']:.1f} s")
        return document

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Serve recovery sessions to hosts on this machine, for the block."""
        words = ["serve", "--bind", "127.0.0.1", "--port", "0", "--reserve", "0"]
        print(f"   $ holdfast {' '.join(words)} &", flush=True)
        command = [sys.executable, "-m", "appliance.cli.main", *words, "--json"]
        process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            if not any(line.startswith(b"}") for line in process.stdout):
                raise SystemExit(f"holdfast serve failed: {process.stderr.read().decode()}")
            yield
        finally:
            process.terminate()
            process.communicate()

    def start_instantly(self, point_id: str) -> dict[str, Any]:
        document: dict[str, Any] = self.holdfast(
            "instant", "start", point_id, "--host", "practice", "--name", _INSTANT, "--power-on"
        )
        for step in document["steps"]:
            print(f"   {step['name']}: {step['seconds']:.2f} s")
        print(f"   page: {self.page(_INSTANT)}")
        return document

    def restore(self, point_id: str) -> float:
        """Return the seconds from the request to the page."""
        started_s = time.monotonic()
        name = f"{_GUEST}-restored"
        self.holdfast("restore", "vm", point_id, "--host", "practice", "--name", name, "--power-on")
        print(f"   page: {self.page(name)}")
        return time.monotonic() - started_s

    def page(self, vm: str) -> str:
        """Fetch the guest's page as soon as it answers, through the lab's port forwarding."""
        deadline_s = time.monotonic() + _READY_LIMIT_S
        while time.monotonic() < deadline_s:
            port = self._port(vm)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    return " ".join(answer.read(4096).decode().split())
            except (OSError, urllib.error.URLError):
                time.sleep(0.5)
        raise SystemExit(f"{vm} does not answer")

    def _port(self, vm: str) -> int:
        status = self._document("lab", "status")
        machine = next(each for each in status["vms"] if each["name"] == vm)
        return int(machine["ports"].get("80", 0))

    def holdfast(self, *words: str) -> Any:
        """Run `holdfast … --json`, shown; return its document, or end the demo."""
        print(f"   $ holdfast {' '.join(words)}", flush=True)
        return self._document(*words)

    def _document(self, *words: str) -> Any:
        done = self._run(*words, "--json", "--quiet")
        if done.returncode not in (0, _WARNINGS):
            raise SystemExit(f"holdfast {words[0]} failed: {done.stdout.decode()}")
        return json.loads(done.stdout)

    def holdfast_text(self, *words: str) -> None:
        print(f"   $ holdfast {' '.join(words)}", flush=True)
        text = self._run(*words).stdout.decode()
        print("".join(f"   {line}\n" for line in text.splitlines()), end="")

    def _run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "appliance.cli.main", *words],
            env=self._environment,
            stdout=subprocess.PIPE,
            check=False,
        )


def _until_power_on(started: dict[str, Any]) -> float:
    return float(sum(each["seconds"] for each in started["steps"] if each["name"] != "heartbeat"))


def main() -> None:
    started_s = time.monotonic()
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    try:
        Demo(folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Demo took {format_duration(time.monotonic() - started_s)}.")


if __name__ == "__main__":
    main()
