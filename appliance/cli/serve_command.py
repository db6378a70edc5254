"""`holdfast serve`: the daemon: jobs, API, web interface and recovery sessions, until stopped."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.service_notify import notify
from appliance.base.units import parse_size
from appliance.cli.numbers import port, whole
from appliance.cli.options import home_path, open_repository, repository_path
from appliance.cli.output import ExitCode, note, show

if TYPE_CHECKING:
    from appliance.api.services import Services
    from appliance.catalog.catalog import Catalog
    from appliance.cli.heartbeat import Heartbeat
    from appliance.repository.repository import Repository
    from appliance.service.deletion import Deletion
    from appliance.service.inventory import InventoryCache
    from appliance.service.job_service import JobService
    from appliance.service.live_feed import LiveFeed
    from appliance.service.notify.post import Post
    from appliance.service.places import PlacesCache
    from appliance.service.recovery_server import RecoveryServer
    from appliance.service.recovery_service import RecoveryService
    from appliance.service.repository_figures import RepositoryFigures

_WAIT_S = 0.2


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    serve = commands.add_parser(
        "serve", parents=[common], help="run the daemon: jobs, API, and recovery sessions over NFS"
    )
    serve.add_argument("--bind", default="0.0.0.0", metavar="ADDRESS", help="what to listen on")
    serve.add_argument(
        "--port",
        type=port,
        default=8443,
        metavar="N",
        help="of web interface and API; 0: a free one",
    )
    serve.add_argument("--nfs-port", type=port, default=2049, metavar="N", help="0: a free one")
    serve.add_argument(
        "--iscsi-port",
        type=port,
        default=3260,
        metavar="N",
        help="used while there is a session for Hyper-V; 0: a free one",
    )
    serve.add_argument(
        "--smb-port",
        type=port,
        default=445,
        metavar="N",
        help="used while there is a session on a share for Hyper-V; 0: a free one",
    )
    serve.add_argument(
        "--portmap",
        default="auto",
        choices=("auto", "register", "own", "none"),
        help="port 111: register with rpcbind, answer there, or neither (auto: what is possible)",
    )
    serve.add_argument("--cache", default="512M", metavar="SIZE", help="decoded chunks kept")
    serve.add_argument(
        "--reserve",
        default="1G",
        metavar="SIZE",
        help="space kept free where sessions keep what guests write",
    )
    serve.add_argument(
        "--setup-token-file",
        type=Path,
        metavar="FILE",
        help="where the set-up token is kept until the first account is made, not on stderr",
    )
    serve.add_argument(
        "--history-days",
        type=whole(0, 36_500),
        default=365,
        metavar="N",
        help="how long runs and verifications are kept (the newest always)",
    )
    serve.set_defaults(run=run_serve)


def run_serve(args: argparse.Namespace) -> int:
    from appliance.api.app import build_application
    from appliance.api.local_socket import Site, local_application
    from appliance.api.services import Services
    from appliance.api.tls import ensure_certificate, fingerprint, own_names, server_context
    from appliance.cli.heartbeat import Heartbeat
    from appliance.exports.loop_thread import LoopThread
    from appliance.service.daemon_client import socket_path
    from appliance.service.daemon_lock import daemon_lock
    from appliance.service.home import Home
    from appliance.service.job_service import JobService
    from appliance.service.points_in_use import points_in_use
    from appliance.service.recovery_service import RecoveryService
    from appliance.service.source_tools import source_tools

    if args.history_days < 1:
        raise UsageError("--history-days is 1 or more")
    home = home_path(args)
    with ExitStack() as stack:
        catalog = stack.enter_context(Home(home).open_catalog())
        stack.enter_context(daemon_lock(home))
        repository = stack.enter_context(open_repository(args, cache_bytes=parse_size(args.cache)))
        server = _started_recovery(args, stack, home, repository)
        loop = LoopThread("daemon-api")
        stack.callback(loop.stop)
        jobs = JobService(
            catalog,
            repository,
            home,
            lambda: frozenset(points_in_use(home)),
            tools=source_tools(home),
            recovery=server,
        )
        recover = RecoveryService(catalog, repository, home, server, source_tools(home))
        post = _started_post(stack, catalog, jobs)
        local = Site(local_application(server, jobs))
        loop.call(local.start_local(socket_path(home)))
        stack.callback(lambda: loop.call(local.stop()))
        services = Services(
            home=home,
            catalog=catalog,
            repository=repository,
            repository_path=repository_path(args),
            recovery=server,
            inventory=_inventory(stack, catalog),
            places=_places(stack, catalog),
            jobs=jobs,
            recover=recover,
            feed=_started_feed(stack, jobs, recover, server, catalog),
            post=post,
            deletion=_deletion(catalog, repository, home),
            figures=_figures(stack, catalog, repository),
        )
        ensure_certificate(home, catalog.clock, own_names())
        web = Site(build_application(services))
        port = loop.call(web.start_tls(_web_host(args.bind), args.port, server_context(home)))
        stack.callback(lambda: loop.call(web.stop()))
        stack.callback(recover.operations.stop)
        stack.callback(jobs.stop)
        jobs.start()
        _start_patrol(stack, catalog, jobs, args.history_days)
        document: dict[str, Any] = {
            "pid": os.getpid(),
            "socket": str(socket_path(home)),
            "web": {"address": args.bind, "port": port, "fingerprint": fingerprint(home)},
            "nfs": {"address": args.bind, "port": server.port},
            "iscsi": {"address": args.bind, "port": server.iscsi_port},
            "smb": {"address": args.bind, "port": server.smb_port},
            "sessions": len(server.sessions()),
            "jobs": len(catalog.jobs.list()),
        }
        show(args, document, lambda: _text(document))
        _show_setup_token(args, stack, services)
        note("interrupt to stop; sessions go on at the next start")
        _stay(args, Heartbeat(loop, catalog.accounts.any))
    return ExitCode.SUCCESS


def _started_recovery(
    args: argparse.Namespace, stack: ExitStack, home: Path, repository: Repository
) -> RecoveryServer:
    from appliance.exports.datastore.session import SessionStore
    from appliance.exports.iscsi.server import IscsiServer
    from appliance.exports.nfs import NfsServer, PortmapMode, handle_key
    from appliance.exports.smb.server import SmbServer
    from appliance.service.recovery_server import RecoveryServer, samba_folder, sessions_folder

    nfs = NfsServer(
        key=handle_key(home / "nfs-handles.key"),
        host=args.bind,
        port=args.nfs_port,
        portmap_mode=PortmapMode(args.portmap),
    )
    server = RecoveryServer(
        SessionStore(sessions_folder(home)),
        repository,
        nfs,
        iscsi=IscsiServer(home / "luns", host=args.bind, port=args.iscsi_port),
        smb=SmbServer(samba_folder(home), home / "shares", host=args.bind, port=args.smb_port),
        reserve_bytes=parse_size(args.reserve),
    )
    stack.callback(server.stop)
    server.start()
    return server


def _stay(args: argparse.Namespace, heartbeat: Heartbeat) -> None:
    """Until the daemon is told to stop."""
    notify("READY=1")
    while not args.cancel.cancelled:
        args.cancel.wait(_WAIT_S)
        heartbeat.beat()
    notify("STOPPING=1")


def _web_host(bind: str) -> str:
    """Every address means those of IPv6 too."""
    return "" if bind == "0.0.0.0" else bind


def _show_setup_token(args: argparse.Namespace, stack: ExitStack, services: Services) -> None:
    """The set-up token on stderr, or in the file that was asked for, which goes with its use."""
    from appliance.api.setup_token_file import SetupTokenFile

    if services.catalog.accounts.any():
        return
    if args.setup_token_file is None:
        note(f"set-up token, for the first account: {services.setup_token}")
        return
    file = SetupTokenFile(args.setup_token_file)
    file.write(services.setup_token)
    stack.callback(file.remove)
    services.on_set_up = file.remove


def _started_feed(
    stack: ExitStack,
    jobs: JobService,
    recover: RecoveryService,
    server: RecoveryServer,
    catalog: Catalog,
) -> LiveFeed:
    """Who watches what goes on, for those who look at it."""
    from appliance.service.live_feed import LiveFeed

    feed = LiveFeed(jobs, recover.operations, server.sessions, catalog.clock)
    jobs.engine.add_listener(lambda run: feed.wake())
    feed.start()
    stack.callback(feed.stop)
    return feed


def _started_post(stack: ExitStack, catalog: Catalog, jobs: JobService) -> Post:
    """Who tells people of runs that have ended; stopped after the last run."""
    from appliance.service.notify.post import Post

    post = Post(catalog)
    jobs.engine.add_listener(lambda run: post.wake())
    post.start()
    stack.callback(post.stop)
    return post


def _inventory(stack: ExitStack, catalog: Catalog) -> InventoryCache:
    from appliance.service.inventory import InventoryCache

    inventory = InventoryCache(catalog)
    stack.callback(inventory.stop)
    return inventory


def _places(stack: ExitStack, catalog: Catalog) -> PlacesCache:
    from appliance.service.places import PlacesCache

    places = PlacesCache(catalog)
    stack.callback(places.stop)
    return places


def _figures(stack: ExitStack, catalog: Catalog, repository: Repository) -> RepositoryFigures:
    from appliance.service.repository_figures import RepositoryFigures

    figures = RepositoryFigures(repository, catalog.clock)
    stack.callback(figures.stop)
    return figures


def _deletion(catalog: Catalog, repository: Repository, home: Path) -> Deletion:
    """What was approved before a kill is carried out now."""
    from appliance.service.deletion import Deletion
    from appliance.service.points_in_use import points_in_use

    deletion = Deletion(catalog, repository, lambda: points_in_use(home))
    deletion.resume()
    return deletion


def _start_patrol(stack: ExitStack, catalog: Catalog, jobs: JobService, days: int) -> None:
    from appliance.service.orphan_patrol import OrphanPatrol

    def also() -> None:
        catalog.history.trim(days)
        jobs.discard_debris()

    patrol = OrphanPatrol(catalog, also=also)
    patrol.start()
    stack.callback(patrol.stop)


def _text(document: dict[str, Any]) -> str:
    web, nfs = document["web"], document["nfs"]
    return (
        f"web interface and API: https://{web['address']}:{web['port']}/\n"
        f"certificate: {web['fingerprint']}\n"
        f"NFS on {nfs['address']} port {nfs['port']}"
    )
