"""AuthorizationManager: what a set-up asks before it begins, and how a role for it is made."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from lab.vcenter.accounts import Role
from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, ManagedEntity, computed, method
from lab.vcenter.privileges import ALL_PRIVILEGES
from lab.vcenter.property_selection import invalid_argument


class AuthorizationManager(LabObject):
    vim_type = vim.AuthorizationManager

    @computed("privilegeList")
    def _privileges(self, _call: Call | None) -> Any:
        return [
            vim.AuthorizationManager.Privilege(
                privId=privilege,
                onParent=False,
                name=privilege.rpartition(".")[2],
                privGroupName=privilege.rpartition(".")[0],
            )
            for privilege in ALL_PRIVILEGES
        ]

    @computed("roleList")
    def _roles(self, _call: Call | None) -> Any:
        return [
            vim.AuthorizationManager.Role(
                roleId=role.role_id,
                system=role.system,
                name=role.name,
                info=vim.Description(label=role.name, summary=role.name),
                privilege=sorted(role.privileges),
            )
            for role in list(self.vcenter.accounts.roles.values())
        ]

    @method("AddAuthorizationRole")
    def add_role(self, _call: Call, name: str, privileges: list[str]) -> int:
        self._check(name, privileges)
        role_id = self.vcenter.accounts.add_role(name, privileges)
        self.touch()
        return role_id

    @method("UpdateAuthorizationRole")
    def update_role(self, _call: Call, role_id: int, name: str, privileges: list[str]) -> None:
        self._own(role_id)
        self._check(name, privileges, except_role=role_id)
        self.vcenter.accounts.change_role(role_id, name, privileges)
        self.touch()

    @method("RemoveAuthorizationRole")
    def remove_role(self, _call: Call, role_id: int, fail_if_used: bool) -> None:
        self._own(role_id)
        used = any(given.role_id == role_id for given in self.vcenter.accounts.permissions())
        if used and fail_if_used:
            raise vim.fault.RemoveFailed(msg="The role is in use.")
        self.vcenter.accounts.remove_role(role_id)
        self.touch()

    def _own(self, role_id: int) -> Role:
        role = self.vcenter.accounts.roles.get(role_id)
        if role is None:
            raise vim.fault.NotFound(msg=f"There is no role {role_id}.")
        if role.system:
            raise invalid_argument("roleId", "A system role cannot be changed.")
        return role

    def _check(self, name: str, privileges: list[str], except_role: int | None = None) -> None:
        if not name:
            raise vim.fault.InvalidName(msg="The name is empty.", name=name)
        for role in list(self.vcenter.accounts.roles.values()):
            if role.name == name and role.role_id != except_role:
                raise vim.fault.AlreadyExists(msg=f"The role {name} exists.", name=name)
        unknown = set(privileges) - set(ALL_PRIVILEGES)
        if unknown:
            raise invalid_argument("privIds", f"Unknown privileges: {', '.join(sorted(unknown))}")

    @method("RetrieveRolePermissions")
    def role_permissions(self, _call: Call, role_id: int) -> Any:
        if role_id not in self.vcenter.accounts.roles:
            raise vim.fault.NotFound(msg=f"There is no role {role_id}.")
        return [p for p in self._all() if p.roleId == role_id]

    @method("RetrieveAllPermissions")
    def all_permissions(self, _call: Call) -> Any:
        return self._all()

    def _all(self) -> list[Any]:
        moids = {given.moid for given in self.vcenter.accounts.permissions()}
        entities = [self.vcenter.registry.get(moid) for moid in sorted(moids)]
        return [
            permission
            for entity in entities
            if isinstance(entity, ManagedEntity)
            for permission in self.vcenter.accounts.permissions_on(entity)
        ]

    @method("RetrieveEntityPermissions")
    def entity_permissions(self, call: Call, ref: Any, inherited: bool) -> Any:
        entity = call.resolve(ref, ManagedEntity)
        found = self.vcenter.accounts.permissions_on(entity)
        for above in entity.ancestors() if inherited else []:
            found += [p for p in self.vcenter.accounts.permissions_on(above) if p.propagate]
        return found

    @method("SetEntityPermissions")
    def set_entity_permissions(self, call: Call, ref: Any, permissions: list[Any]) -> None:
        entity = call.resolve(ref, ManagedEntity)
        accounts = self.vcenter.accounts
        for given in permissions:
            if given.roleId not in accounts.roles:
                raise vim.fault.NotFound(msg=f"There is no role {given.roleId}.")
            if given.group or not accounts.knows_user(given.principal):
                raise vim.fault.UserNotFound(
                    msg=f"The user {given.principal} is not known.",
                    principal=given.principal,
                    unresolved=False,
                )
        for given in permissions:
            accounts.permit(given.principal, given.roleId, entity, propagate=given.propagate)
        entity.touch()

    @method("RemoveEntityPermission")
    def remove_entity_permission(self, call: Call, ref: Any, user: str, _is_group: bool) -> None:
        entity = call.resolve(ref, ManagedEntity)
        if not self.vcenter.accounts.withdraw(user, entity):
            raise vim.fault.NotFound(msg="There is no such permission.")
        entity.touch()

    @method("HasPrivilegeOnEntities")
    def has_privilege_on_entities(
        self, call: Call, refs: list[Any], session_key: str, privileges: list[str]
    ) -> Any:
        user = self._user_of(session_key)
        return [self._availability(call, ref, user, privileges) for ref in refs]

    @method("HasPrivilegeOnEntity")
    def has_privilege_on_entity(
        self, call: Call, ref: Any, session_key: str, privileges: list[str]
    ) -> Any:
        user = self._user_of(session_key)
        entity = call.resolve(ref, ManagedEntity)
        return [self.vcenter.accounts.allows(user, wanted, entity) for wanted in privileges]

    @method("HasUserPrivilegeOnEntities", privilege="System.View")
    def has_user_privilege_on_entities(
        self, call: Call, refs: list[Any], user: str, privileges: list[str]
    ) -> Any:
        return [self._availability(call, ref, user, privileges) for ref in refs]

    @method("FetchUserPrivilegeOnEntities", privilege="System.View")
    def fetch_user_privilege_on_entities(self, call: Call, refs: list[Any], user: str) -> Any:
        return [
            vim.AuthorizationManager.UserPrivilegeResult(
                entity=ref,
                privileges=sorted(
                    self.vcenter.accounts.privileges_of(user, call.resolve(ref, ManagedEntity))
                ),
            )
            for ref in refs
        ]

    def _user_of(self, session_key: str) -> str:
        for session in self.vcenter.sessions.all():
            if session.key == session_key:
                return session.user
        raise invalid_argument("sessionId", "There is no such session.")

    def _availability(self, call: Call, ref: Any, user: str, privileges: list[str]) -> Any:
        entity = call.resolve(ref, ManagedEntity)
        return vim.AuthorizationManager.EntityPrivilege(
            entity=ref,
            privAvailability=[
                vim.AuthorizationManager.PrivilegeAvailability(
                    privId=wanted, isGranted=self.vcenter.accounts.allows(user, wanted, entity)
                )
                for wanted in privileges
            ],
        )
