"""LabVcenter: the practice vCenter in this process. Made, filled, started, used, closed.

    with LabVcenter() as vcenter:
        inventory = build_small(vcenter)       # lab.vcenter.inventory
        SmartConnect(host=vcenter.address, port=vcenter.port, user=vcenter.user, …)

Thread model: any thread may change the inventory while it serves. `close` ends the sessions, cuts
the connections, cancels the tasks and joins every thread.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from lab.esx.file_locks import FileLocks
from lab.faults import FaultSwitches
from lab.vcenter.accounts import ADMIN_ROLE, Accounts
from lab.vcenter.authorization_manager import AuthorizationManager
from lab.vcenter.certificate import make_identity
from lab.vcenter.custom_fields import CustomFieldsManager
from lab.vcenter.events import EventManager, TaskManager
from lab.vcenter.file_manager import FileManager
from lab.vcenter.folders import Folder
from lab.vcenter.http_message import HttpRequest
from lab.vcenter.https_server import Handler, HttpsServer
from lab.vcenter.managed_object import LabObject
from lab.vcenter.options import OptionManager
from lab.vcenter.property_collector import PropertyCollector
from lab.vcenter.registry import Registry
from lab.vcenter.search_index import SearchIndex
from lab.vcenter.service_instance import ServiceInstance
from lab.vcenter.session_manager import SessionManager
from lab.vcenter.sessions import COOKIE_NAME, DEFAULT_IDLE_S, Session, Sessions
from lab.vcenter.soap_endpoint import SoapEndpoint
from lab.vcenter.tasks import TaskTable
from lab.vcenter.tickets import ServiceTickets
from lab.vcenter.views import ViewManager
from lab.vcenter.virtual_disks import VirtualDiskManager

if TYPE_CHECKING:
    from lab.data_plane.data_plane import DataPlane

USER = "administrator@vsphere.local"
PAGE_OBJECTS = 1000


class LabVcenter:
    def __init__(
        self,
        *,
        port: int = 0,
        password: str = "Practice-1",
        idle_s: float = DEFAULT_IDLE_S,
        clock: Callable[[], float] = time.monotonic,
        page_objects: int = PAGE_OBJECTS,
    ) -> None:
        """`port` 0 is one that the system chooses. Sessions idle for `idle_s` end."""
        self.address = "127.0.0.1"
        self.user = USER
        self.password = password
        self.instance_uuid = str(uuid.uuid4())
        self.page_objects = page_objects
        self.clock = clock
        self.identity = make_identity(self.address)
        self.registry = Registry()
        self.accounts = Accounts()
        self.sessions = Sessions(idle_s=idle_s, clock=clock, on_end=self._session_ended)
        self.tickets = ServiceTickets(clock)
        self.switches = FaultSwitches()
        self.file_locks = FileLocks()  # of all datastores: machines, transfers, the file manager
        self.tasks = TaskTable(self)
        self.root_folder = Folder(self, "Datacenters", None, "group-d")
        self.accounts.add_user(USER, password)
        self.accounts.permit(USER, ADMIN_ROLE, self.root_folder)
        self.custom_fields = CustomFieldsManager(self, "CustomFieldsManager")
        self.property_collector = PropertyCollector(self, "propertyCollector")
        self.events = EventManager(self, "EventManager")
        self._managers: dict[str, LabObject] = {
            "rootFolder": self.root_folder,
            "propertyCollector": self.property_collector,
            "viewManager": ViewManager(self, "ViewManager"),
            "sessionManager": SessionManager(self, "SessionManager"),
            "authorizationManager": AuthorizationManager(self, "AuthorizationManager"),
            "searchIndex": SearchIndex(self, "SearchIndex"),
            "taskManager": TaskManager(self, "TaskManager"),
            "eventManager": self.events,
            "fileManager": FileManager(self, "FileManager"),
            "virtualDiskManager": VirtualDiskManager(self, "virtualDiskManager"),
            "customFieldsManager": self.custom_fields,
            "setting": OptionManager(self, "VpxSettings"),
        }
        self.service_instance = ServiceInstance(self, self._managers)
        self._server = HttpsServer(self.identity.context, address=self.address, port=port)
        self.port = self._server.port
        self.identities = {f"{self.address}:{self.port}": self.identity}  # and those of its hosts
        self.data_plane: DataPlane | None = None  # makes itself known
        self.route("/sdk", SoapEndpoint(self))

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}/sdk"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, "AA:BB:…"."""
        return self.identity.fingerprint_sha256

    def add_manager(self, name: str, manager: LabObject) -> None:
        """Show a manager in ServiceContent under its VMODL name, such as `ovfManager`."""
        if name in self._managers:
            raise ValueError(name)
        self._managers[name] = manager
        self.service_instance.content(None)  # raises for a name or type that does not fit

    def route(self, prefix: str, handler: Handler) -> None:
        """Serve a path that is not SOAP; see `https_server`."""
        self._server.route(prefix, handler)

    def session_of(self, request: HttpRequest) -> Session | None:
        """The session that the request's cookie names; None if there is none, or it expired."""
        return self.sessions.find(request.cookie(COOKIE_NAME))

    def start(self) -> None:
        self._server.start()

    def close(self) -> None:
        """Idempotent."""
        self.sessions.end_all()
        self.tasks.close()
        if self.data_plane is not None:
            self.data_plane.close()
        self._server.close()

    def __enter__(self) -> LabVcenter:
        self.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def _session_ended(self, session: Session) -> None:
        self.property_collector.end_session(session)
        with self.registry.changed:
            for thing in self.registry.all(LabObject):
                if thing.owner is session:
                    thing.unregister()
            self.registry.changed.notify_all()
