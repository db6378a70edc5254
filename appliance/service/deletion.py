"""Forgetting recovery points by hand: at once, or after a second administrator approved it.

One administrator alone must not be able to get around it. So, while deletion is guarded, lowering
the guard takes two as well, and nobody makes an administrator or takes another's account over
(`refuse_while_guarded`). Who owns the machine or the repository's disk is not stopped by this, nor
is what the retention of a policy removes.

An approved request is carried out at once; one that a kill cut short goes on at the next start.

Thread model: any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from appliance.base.errors import ApplianceError
from appliance.base.ids import RecoveryPointId, parse_point_id
from appliance.base.log import EventLog
from appliance.catalog.accounts import Role
from appliance.catalog.approvals import Approval, ApprovalKind, ApprovalState, Guard
from appliance.catalog.catalog import Catalog
from appliance.catalog.channel import Message, Severity
from appliance.catalog.errors import ApprovalError
from appliance.repository.repository import Repository
from appliance.service.points_in_use import PointInUseError

log = EventLog(__name__)


class GuardedError(ApprovalError):
    """Deletion needs two administrators here, so this change would get around it.

    Lower the guard first (`holdfast approval require nothing`, which another administrator
    approves), make the change, and raise it again.
    """

    code = "approval.guarded"


class TooFewAdministratorsError(ApprovalError):
    """A second administrator's approval needs two accounts of administrators; make another one."""

    code = "approval.too-few"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`approval`: what has to be approved; None: it is done."""

    approval: Approval | None


class Deletion:
    """`in_use`: the points that recovery sessions run from, each with its session."""

    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        in_use: Callable[[], Mapping[RecoveryPointId, str]],
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._in_use = in_use

    def forget(self, points: Sequence[RecoveryPointId], *, by: str, reason: str = "") -> Asked:
        """Forget points, or ask for it. `by`: the account that is behind it.

        Raises: PointNotFoundError, PointInUseError, UsageError, StorageError.
        """
        for point in points:
            self._repository.points.get(point)
        self._refuse_if_in_use(points)
        if self._catalog.approvals.guard() is Guard.NOTHING:
            self._forget(points)
            return Asked(approval=None)
        return Asked(approval=self._ask(ApprovalKind.FORGET_POINTS, points, by, reason))

    def require(self, guard: Guard, *, by: str) -> Asked:
        """Raise the guard, or ask to lower it. Raises TooFewAdministratorsError."""
        before = self._catalog.approvals.guard()
        if guard is before:
            return Asked(approval=None)
        if guard is Guard.NOTHING:
            return Asked(approval=self._ask(ApprovalKind.LOWER_GUARD, (), by, ""))
        if len(_administrators(self._catalog)) < 2:
            raise TooFewAdministratorsError("there is one administrator")
        self._catalog.approvals.set_guard(guard)
        return Asked(approval=None)

    def approve(self, number: int, *, by: str) -> Approval:
        """Approve and carry out. `by`: an administrator's account.

        Raises: as `Approvals.decide`; PointInUseError, StorageError: then it is not approved, or
        what is left is done at the next start.
        """
        found = self._catalog.approvals.get(number)
        if found.state is ApprovalState.WAITING and found.kind is ApprovalKind.FORGET_POINTS:
            self._refuse_if_in_use(found.objects)
        return self._carry_out(
            self._catalog.approvals.decide(number, ApprovalState.APPROVED, by=by)
        )

    def refuse(self, number: int, *, by: str) -> Approval:
        """Raises as `Approvals.decide`."""
        return self._catalog.approvals.decide(number, ApprovalState.REFUSED, by=by)

    def resume(self) -> None:
        """Carry out what was approved before a kill; what fails is logged, and left to the next."""
        for approval in self._catalog.approvals.approved():
            log.info("approved request goes on", request=approval.id, kind=approval.kind)
            try:
                self._carry_out(approval)
            except ApplianceError as error:  # a daemon that does not start helps nobody
                log.error("approved request is not done", request=approval.id, error=error)

    def _carry_out(self, approval: Approval) -> Approval:
        match approval.kind:
            case ApprovalKind.FORGET_POINTS:
                used = self._in_use()
                self._forget(
                    [parse_point_id(each) for each in approval.objects if each not in used]
                )
            case ApprovalKind.LOWER_GUARD:
                self._catalog.approvals.set_guard(Guard.NOTHING)
            case ApprovalKind.DELETE_REPOSITORY:  # `repository_deletion.py` carries it out
                return approval
        return self._catalog.approvals.done(approval.id)

    def _forget(self, points: Sequence[RecoveryPointId]) -> None:
        for point in points:
            self._repository.points.forget(point)

    def _refuse_if_in_use(self, points: Sequence[str]) -> None:
        used = self._in_use()
        for point in map(RecoveryPointId, points):
            if point in used:
                raise PointInUseError(f"session {used[point]} runs from {point}")

    def _ask(self, kind: ApprovalKind, objects: Sequence[str], by: str, reason: str) -> Approval:
        return announced_request(self._catalog, kind, objects, by, reason)


def announced_request(
    catalog: Catalog, kind: ApprovalKind, objects: Sequence[str], by: str, reason: str
) -> Approval:
    """Ask for it, and tell people."""
    approval = catalog.approvals.ask(kind, objects, by=by, reason=reason)
    catalog.notifications.announce(_message(approval))
    return approval


def refuse_while_guarded(catalog: Catalog, what: str) -> None:
    """Of what would give one administrator a second one's approval. Raises GuardedError."""
    if catalog.approvals.guard() is not Guard.NOTHING:
        raise GuardedError(f"{what} while deletion needs a second administrator")


def keep_two_administrators(catalog: Catalog, without: str) -> None:
    """Of who leaves while deletion is guarded: one alone could neither delete nor lower the guard.

    Raises GuardedError.
    """
    able = _administrators(catalog)
    if without in able and len(able) < 3:
        refuse_while_guarded(catalog, "the second administrator stays")


def is_administrator(catalog: Catalog, name: str) -> bool:
    return name in _administrators(catalog)


def _administrators(catalog: Catalog) -> list[str]:
    return [
        account.name
        for account in catalog.accounts.list()
        if account.role is Role.ADMINISTRATOR and not account.disabled
    ]


def _message(approval: Approval) -> Message:
    what = "deletion shall no longer need a second administrator"
    if approval.kind is ApprovalKind.FORGET_POINTS:
        count = len(approval.objects)
        what = f"{count} recovery point{'s' * (count != 1)} shall be forgotten"
    elif approval.kind is ApprovalKind.DELETE_REPOSITORY:
        what = f"repository {approval.objects[0]} shall be deleted with all its recovery points"
    return Message(
        event="approval",
        severity=Severity.WARNING,
        subject=f"Holdfast: request {approval.id} by {approval.requested_by}: {what}",
        lines=(
            f"{approval.requested_by} asks: {what}.",
            f"Reason: {approval.reason or 'none was given'}",
            "Another administrator decides: page Approvals, or `holdfast approval decide`."
            f" It expires at {approval.expires_at:%Y-%m-%d %H:%M} UTC.",
        ),
        facts={"request": approval.id, "kind": approval.kind, "by": approval.requested_by},
        at=approval.requested_at,
    )
