"""Users, roles and permissions, and the one question they answer: may this user do that there.

A permission gives a user a role on an entity and, if it propagates, on everything below. The
nearest permission on the way up decides alone, as in vSphere. `System.*` privileges are part of
every role except NoAccess.

Thread model: any thread; one lock. Answers are cached until a permission or the tree changes.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pyVmomi import vim

from lab.vcenter.managed_object import LabObject, ManagedEntity
from lab.vcenter.privileges import ALL_PRIVILEGES, SYSTEM_PRIVILEGES

ADMIN_ROLE = -1
READ_ONLY_ROLE = -2
NO_ACCESS_ROLE = -5


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    role_id: int
    name: str
    privileges: frozenset[str]
    system: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    moid: str
    principal: str
    role_id: int
    propagate: bool


class Accounts:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passwords: dict[str, str] = {}
        self._numbers = itertools.count(10)
        self.roles: dict[int, Role] = {}
        self._permissions: dict[tuple[str, str], Permission] = {}
        self._granted: dict[tuple[str, str], frozenset[str]] = {}
        for role_id, name, privileges in (
            (ADMIN_ROLE, "Admin", frozenset(ALL_PRIVILEGES)),
            (READ_ONLY_ROLE, "ReadOnly", SYSTEM_PRIVILEGES),
            (NO_ACCESS_ROLE, "NoAccess", frozenset[str]()),
        ):
            self.roles[role_id] = Role(
                role_id=role_id, name=name, privileges=privileges, system=True
            )

    def add_user(self, name: str, password: str) -> None:
        """A user without any permission sees nothing."""
        with self._lock:
            self._passwords[name.lower()] = password

    def password_fits(self, name: str, password: str) -> bool:
        known = self._passwords.get(name.lower(), "")
        same = secrets.compare_digest(known.encode(), password.encode())
        return same and name.lower() in self._passwords

    def knows_user(self, name: str) -> bool:
        return name.lower() in self._passwords

    def add_role(self, name: str, privileges: Iterable[str]) -> int:
        """The role's id. The System privileges come with it."""
        with self._lock:
            role_id = next(self._numbers)
            self.roles[role_id] = Role(
                role_id=role_id, name=name, privileges=frozenset(privileges) | SYSTEM_PRIVILEGES
            )
            return role_id

    def change_role(self, role_id: int, name: str, privileges: Iterable[str]) -> None:
        with self._lock:
            self.roles[role_id] = Role(
                role_id=role_id, name=name, privileges=frozenset(privileges) | SYSTEM_PRIVILEGES
            )
            self._granted.clear()

    def narrow_role(self, role_id: int, privileges: Iterable[str]) -> None:
        """Give a role exactly these, even without the System privileges."""
        with self._lock:
            self.roles[role_id] = replace(self.roles[role_id], privileges=frozenset(privileges))
            self._granted.clear()

    def remove_role(self, role_id: int) -> None:
        """Permissions that give it go with it."""
        with self._lock:
            del self.roles[role_id]
            self._permissions = {
                place: given
                for place, given in self._permissions.items()
                if given.role_id != role_id
            }
            self._granted.clear()

    def permit(
        self, user: str, role_id: int, entity: ManagedEntity, *, propagate: bool = True
    ) -> None:
        with self._lock:
            self._permissions[(user.lower(), entity.moid)] = Permission(
                moid=entity.moid, principal=user, role_id=role_id, propagate=propagate
            )
            self._granted.clear()

    def withdraw(self, user: str, entity: ManagedEntity) -> bool:
        """Return False if there was no such permission."""
        with self._lock:
            gone = self._permissions.pop((user.lower(), entity.moid), None)
            self._granted.clear()
            return gone is not None

    def permissions(self) -> list[Permission]:
        with self._lock:
            return list(self._permissions.values())

    def tree_changed(self) -> None:
        """An entity has moved to another parent."""
        with self._lock:
            self._granted.clear()

    def allows(self, user: str, privilege: str, thing: LabObject) -> bool:
        return privilege in self.privileges_of(user, thing)

    def privileges_of(self, user: str, thing: LabObject) -> frozenset[str]:
        key = (user.lower(), thing.moid)
        granted = self._granted.get(key)
        if granted is None:
            role = self._deciding_role(user, thing)
            granted = role.privileges if role else frozenset[str]()
            self._granted[key] = granted
        return granted

    def roles_of(self, user: str, thing: LabObject) -> list[int]:
        role = self._deciding_role(user, thing)
        return [role.role_id] if role else []

    def _deciding_role(self, user: str, thing: LabObject) -> Role | None:
        place: LabObject | None = thing
        while place is not None:
            found = self._permissions.get((user.lower(), place.moid))
            if found is not None and (found.propagate or place is thing):
                return self.roles.get(found.role_id)
            place = place.parent if isinstance(place, ManagedEntity) else None
        return None

    def permissions_on(self, entity: ManagedEntity) -> list[Any]:
        return [
            vim.AuthorizationManager.Permission(
                entity=entity.ref,
                principal=given.principal,
                group=False,
                roleId=given.role_id,
                propagate=given.propagate,
            )
            for given in self.permissions()
            if given.moid == entity.moid
        ]
