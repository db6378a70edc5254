"""`holdfast instant start --target local`: a session that runs in this machine's sandbox.

The daemon serves the session's disks over NBD on a local socket; the sandbox boots from there and
ends with the command. What the guest wrote stays with the session: start it again with --resume, or
drop it with `instant discard`.
"""

from __future__ import annotations

import argparse
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from appliance.base.units import format_duration, parse_size
from appliance.cli.daemon_words import daemon_words
from appliance.cli.numbers import whole
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, note, note_reasons, show

if TYPE_CHECKING:
    from appliance.exports.datastore.session import SessionRecord, SessionStore
    from appliance.repository.manifest import Manifest
    from appliance.sandbox.machine import Machine
    from appliance.sandbox.probes import Probe

_INTERFACES = ("virtio", "ide", "sata", "nvme", "pvscsi")
_RECONNECT_S = 600  # how long the guest waits for a daemon that is started again
_WAIT_S = 0.1


def add_options(start: argparse.ArgumentParser) -> None:
    group = start.add_argument_group("with --target local")
    group.add_argument("--memory", type=whole(1, 1 << 20), default=512, metavar="MIB")
    group.add_argument("--cpus", type=whole(1, 256), default=1, metavar="N")
    group.add_argument("--disk-interface", default="virtio", choices=_INTERFACES)
    group.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="PROBE",
        help="tcp:PORT, http:PORT/PATH or serial:REGEX; when all have passed the guest is ready",
    )


def wanted(args: argparse.Namespace) -> bool:
    return args.target == "local" or (args.resume is not None and is_local(args, args.resume))


def is_local(args: argparse.Namespace, session_id: str) -> bool:
    """Of a session that there is."""
    from appliance.exports.datastore.session import Presentation, SessionNotFoundError

    with suppress(SessionNotFoundError):
        return bool(_store(args).get(session_id).presentation is Presentation.NBD)
    return False


def run_start(args: argparse.Namespace) -> int:
    """Boot, say when the guest is ready, and keep it running until interrupted or it ends."""
    from appliance.jobs.session_space import refuse_without_room, space_reasons
    from appliance.sandbox.machine import Machine
    from appliance.sandbox.probes import parse_probe
    from appliance.service.daemon_client import DaemonClient
    from appliance.service.daemon_start import ensure_daemon
    from appliance.service.home import Home
    from appliance.service.recovery_server import sessions_folder

    home = home_path(args)
    Home(home).prepare()
    store, folder = _store(args), sessions_folder(home)
    probes = [parse_probe(text) for text in args.probe]
    steps: list[dict[str, Any]] = []
    began_s = time.perf_counter()

    def ended(name: str) -> None:
        nonlocal began_s
        now_s = time.perf_counter()
        steps.append({"name": name, "seconds": round(now_s - began_s, 3)})
        began_s = now_s

    refuse_without_room(folder, parse_size(args.reserve))
    record = store.get(args.resume) if args.resume else _publish(args, store)
    ended("publish")
    ensure_daemon(home, daemon_words(args), args.cancel)
    DaemonClient(home).serve(record.session_id)
    ended("serve")
    reasons = space_reasons(folder)
    with store.working_on(record.session_id):
        artifacts = home / "sessions" / record.session_id
        with Machine(_spec(args, store, record, probes), artifacts) as machine:
            ended("power on")
            ready = _wait_ready(args, machine, probes)
            ended("ready")
            note_reasons([*reasons, machine.acceleration.reason])
            document = {
                "session_id": record.session_id,
                "point_id": record.point_id,
                "vm": record.vm,
                "ready": ready,
                "ports": {str(port): machine.forwarded_port(port) for port in _ports(probes)},
                "serial_log_path": machine.serial_log_path,
                "steps": steps,
                "reasons": [reason.as_json() for reason in reasons],
            }
            show(args, document, lambda: _text(record, steps, ready=ready))
            note("running; interrupt to switch it off; the session stays")
            while machine.running and not args.cancel.cancelled:
                machine.wait(_WAIT_S)
    return ExitCode.SUCCESS if ready else ExitCode.FAILED


def run_discard(args: argparse.Namespace) -> int:
    from appliance.service.daemon_client import DaemonClient, DaemonUnreachableError

    store = _store(args)
    with store.working_on(args.session):
        record = store.get(args.session)
        with suppress(DaemonUnreachableError):
            DaemonClient(home_path(args)).withdraw(args.session)
        store.remove(args.session)
    show(
        args,
        {"session_id": record.session_id, "point_id": record.point_id, "vm": record.vm},
        lambda: f"session {record.session_id}: {record.vm} discarded",
    )
    return ExitCode.SUCCESS


def _store(args: argparse.Namespace) -> SessionStore:
    from appliance.exports.datastore.session import SessionStore
    from appliance.service.recovery_server import sessions_folder

    return SessionStore(sessions_folder(home_path(args)))


def _publish(args: argparse.Namespace, store: SessionStore) -> SessionRecord:
    from appliance.base.clock import SystemClock
    from appliance.exports.datastore.session import Presentation, SessionDisk, SessionRecord

    with open_repository(args) as repository:
        manifest: Manifest = repository.points.find(args.point)
        record = SessionRecord(
            session_id=store.new_id(),
            created_at=SystemClock().now(),
            point_id=manifest.point_id,
            vm=args.name or manifest.vm,
            folder="vm",
            disks=tuple(
                SessionDisk(
                    number=disk.number,
                    size_bytes=disk.size_bytes,
                    file=f"disk-{disk.number}-flat.vmdk",
                )
                for disk in manifest.disks
            ),
            tree_id=secrets.randbits(63) | 1,
            clients=(),
            presentation=Presentation.NBD,
        )
        store.create(record, {}, repository.open_image)
    return record


def _spec(
    args: argparse.Namespace, store: SessionStore, record: SessionRecord, probes: list[Probe]
) -> Any:
    from appliance.sandbox.spec import DiskInterface, MachineSpec, NbdExport

    socket_path = store.nbd_socket(record.session_id)
    return MachineSpec(
        disks=tuple(
            NbdExport(
                socket_path=socket_path,
                export=f"disk-{disk.number}",
                reconnect_delay_s=_RECONNECT_S,
            )
            for disk in record.disks
        ),
        memory_mib=args.memory,
        cpus=args.cpus,
        disk_interface=DiskInterface(args.disk_interface),
        forwarded_ports=tuple(_ports(probes)),
    )


def _ports(probes: list[Probe]) -> list[int]:
    return [probe.guest_port for probe in probes if probe.guest_port is not None]


def _wait_ready(args: argparse.Namespace, machine: Machine, probes: list[Probe]) -> bool:
    """Whether all probes passed in time; without probes a machine that runs is ready."""
    ends_s = time.monotonic() + args.heartbeat_timeout
    pending = list(probes)
    while pending and machine.running and time.monotonic() < ends_s:
        args.cancel.check()
        pending = [probe for probe in pending if not probe.attempt(machine).ok]
        machine.wait(_WAIT_S)
    return machine.running and not pending


def _text(record: SessionRecord, steps: list[dict[str, Any]], *, ready: bool) -> str:
    lines = [f"session {record.session_id}: {record.vm} {'is ready' if ready else 'is NOT ready'}"]
    lines += [f"  {step['name']:<10} {format_duration(step['seconds'])}" for step in steps]
    return "\n".join(lines)
