"""`/screen?id=<moref>`: what a VM's screen shows, as PNG. Thread model: any thread.

Source: design notes on vSphere, section 6.
"""

from __future__ import annotations

import tempfile
from http import HTTPStatus
from pathlib import Path

from lab.data_plane.access import Gate, Privileges
from lab.data_plane.faulty_body import strike
from lab.data_plane.place import Refusal
from lab.esx.errors import HostError
from lab.faults import FaultName, FaultSwitches
from lab.vcenter.http_message import HttpReply, HttpRequest
from lab.vcenter.registry import Registry
from lab.vcenter.virtual_machine import VirtualMachine

PREFIX = "/screen"


class ScreenHandler:
    def __init__(
        self, gate: Gate, privileges: Privileges, registry: Registry, switches: FaultSwitches
    ) -> None:
        self._gate = gate
        self._privileges = privileges
        self._registry = registry
        self._switches = switches

    def __call__(self, request: HttpRequest) -> HttpReply:
        try:
            strike(self._gate.place, request, self._switches)
            return self._answer(request)
        except Refusal as refusal:
            return refusal.reply

    def _answer(self, request: HttpRequest) -> HttpReply:
        user = self._gate.caller(request).user
        moid = request.parameter("id") or ""
        thing = self._registry.get(moid)
        if request.method != "GET" or not isinstance(thing, VirtualMachine):
            raise Refusal(HTTPStatus.NOT_FOUND, "no such virtual machine")
        if not self._privileges.allows(user, "VirtualMachine.Interact.ConsoleInteract", moid):
            raise Refusal(HTTPStatus.FORBIDDEN, "a privilege is missing")
        machine = thing.engine.machine if thing.engine is not None else None
        if machine is None or self._switches.take(FaultName.SCREEN_UNAVAILABLE, vm=moid):
            raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "there is no screen")
        with tempfile.TemporaryDirectory(prefix="lab-screen-") as folder:
            picture = Path(folder, "screen.png")
            try:
                machine.screenshot(picture)
            except HostError:
                raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "there is no screen") from None
            return HttpReply(headers=[("Content-Type", "image/png")], body=picture.read_bytes())
