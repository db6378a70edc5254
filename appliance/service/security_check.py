"""What an administrator should have done for safety, looked at: a list of passed and failed.

Each check reads what there is and changes nothing; what it cannot know it does not claim.
Thread model: any thread; blocks on the catalog.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from appliance.catalog.accounts import Role
from appliance.catalog.catalog import Catalog
from appliance.catalog.job import RunKind
from appliance.catalog.jobs import SavedJob
from appliance.catalog.runs import RunOutcome
from appliance.machine.firewall import FirewallState
from appliance.machine.layout import Layout, read_status
from appliance.repository.repository import Repository

_PROVEN_WITHIN = timedelta(days=7)
_CHECKED_WITHIN = timedelta(days=31)
_TOKEN_UNUSED = timedelta(days=90)
_NAMED_MOST = 5
_RUNS_READ = 1000
_VMS_READ = 10_000


_FIREWALL_TEXTS = {
    FirewallState.SETTINGS: "the firewall lets in what the settings say",
    FirewallState.CLOSED: "the firewall refused the settings and lets nobody in",
    FirewallState.NONE: "no firewall could be loaded at the last start of the machine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityFinding:
    code: str
    passed: bool
    text: str  # what was found
    next_step: str  # empty when passed
    address: str  # of the page where that is done


class SecurityCheck:
    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        home: Path,
        machine: Layout | None = None,
    ) -> None:
        """`machine`: the appliance's system disk; on other machines there is no status on it, and
        nothing is said of it."""
        self._catalog = catalog
        self._repository = repository
        self._home = home
        self._machine = machine or Layout()

    def findings(self) -> list[SecurityFinding]:
        """All checks, those that failed first."""
        found = [
            *self._accounts(),
            *self._tokens(),
            *self._repository_checks(),
            *self._jobs(),
            *self._proofs(),
            *self._appliance(),
            *self._machine_checks(),
        ]
        return sorted(found, key=lambda each: each.passed)

    def _accounts(self) -> Iterator[SecurityFinding]:
        accounts = [each for each in self._catalog.accounts.list() if not each.disabled]
        administrators = [each for each in accounts if each.role is Role.ADMINISTRATOR]
        yield _finding(
            "security.two-administrators",
            len(administrators) > 1,
            f"there {_are(len(administrators), 'administrator')}",
            "make a second administrator: a lost password must not lock you out",
            "/accounts",
        )
        without = [each.name for each in administrators if not each.has_totp]
        yield _finding(
            "security.second-factor",
            not without,
            f"administrators without a second factor: {_named(without)}",
            "let each of them make a key on their own account's page",
            "/me",
        )

    def _tokens(self) -> Iterator[SecurityFinding]:
        now = self._catalog.clock.now()
        tokens = self._catalog.api_tokens.list()
        lasting = [each.name for each in tokens if each.expires_at is None]
        yield _finding(
            "security.token-expires",
            not lasting,
            f"API tokens that never expire: {_named(lasting)}",
            "replace them by tokens with an end",
            "/accounts",
        )
        unused = [
            each.name for each in tokens if now - (each.used_at or each.created_at) > _TOKEN_UNUSED
        ]
        yield _finding(
            "security.token-used",
            not unused,
            f"API tokens that nobody used for 90 days: {_named(unused)}",
            "revoke them",
            "/accounts",
        )

    def _repository_checks(self) -> Iterator[SecurityFinding]:
        yield _finding(
            "security.repository-encrypted",
            self._repository.config.encrypted,
            "the repository is encrypted"
            if self._repository.config.encrypted
            else "the repository is not encrypted: whoever takes its disk reads every guest",
            "begin a new, encrypted repository: `holdfast repo init --help`",
            "/repository",
        )

    def _jobs(self) -> Iterator[SecurityFinding]:
        enabled = [saved for saved in self._catalog.jobs.list() if saved.job.enabled]
        kinds = {saved.job.kind for saved in enabled if saved.policy.schedule is not None}
        for kind, what in (
            (RunKind.CHECK, "checks the repository"),
            (RunKind.GC, "collects garbage"),
            (RunKind.VERIFICATION, "verifies recovery points"),
        ):
            yield _finding(
                f"security.job-{kind}",
                kind in kinds,
                f"{'a' if kind in kinds else 'no'} scheduled job {what}",
                "make one",
                f"/new-job?job.kind={kind}",
            )
        yield self._checked(enabled)
        blind = [
            saved.name
            for saved in enabled
            if saved.job.kind is RunKind.BACKUP and not saved.policy.cbt_audit_percent
        ]
        yield _finding(
            "security.cbt-audit",
            not blind,
            f"jobs that trust changed block tracking blindly: {_named(blind)}",
            "let their policies read some of it again (`cbt_audit_percent`)",
            "/jobs",
        )

    def _checked(self, enabled: Sequence[SavedJob]) -> SecurityFinding:
        since = self._catalog.clock.now() - _CHECKED_WITHIN
        good = any(
            run.kind is RunKind.CHECK
            and run.outcome in (RunOutcome.SUCCESS, RunOutcome.WARNING)
            and run.ended_at is not None
            and run.ended_at > since
            for run in self._catalog.job_runs.list(limit=_RUNS_READ)
        )
        return _finding(
            "security.checked-lately",
            good,
            f"the repository was {'' if good else 'not '}checked by a job within 31 days",
            "run a check, and look why it does not run by itself",
            "/runs",
        )

    def _proofs(self) -> Iterator[SecurityFinding]:
        since = self._catalog.clock.now() - _PROVEN_WITHIN
        proven = {
            each.vm
            for each in self._catalog.verifications.newest(limit=_VMS_READ)
            if each.verdict == "passed" and each.started_at > since
        }
        kept = self._catalog.points.vms()
        without = [each.vm for each in kept if each.vm not in proven]
        yield _finding(
            "security.proven-lately",
            not without,
            f"{len(without)} of {len(kept)} VMs have no proof of the last seven days: "
            f"{_named(without)}",
            "let a verification job cover them",
            "/reports",
        )

    def _appliance(self) -> Iterator[SecurityFinding]:
        channels = self._catalog.notifications.channels()
        yield _finding(
            "security.notified",
            bool(channels),
            f"there {_are(len(channels), 'notification channel')}",
            "add one: a failure that nobody hears of lasts",
            "/notifications",
        )
        broken = self._catalog.audit.first_broken()
        yield _finding(
            "security.audit-intact",
            broken is None,
            "the audit log is intact" if broken is None else f"tampered with from entry {broken}",
            "find out who may write to the state folder",
            "/audit",
        )
        mode = self._home.stat().st_mode & 0o077
        yield _finding(
            "security.home-private",
            not mode,
            "the state folder is the appliance's own"
            if not mode
            else "other users of this machine may enter the state folder",
            f"run `chmod 700 {self._home}`",
            "/security",
        )

    def _machine_checks(self) -> Iterator[SecurityFinding]:
        status = read_status(self._machine.status)
        if status is None:
            return
        yield _finding(
            "security.firewall",
            status.firewall is FirewallState.SETTINGS,
            _FIREWALL_TEXTS[status.firewall],
            "correct the networks with `sudo holdfast-machine set-up`; `sudo journalctl "
            "-u holdfast-prepare` says what was refused",
            "/security",
        )
        yield _finding(
            "security.machine",
            not status.problems,
            f"what the last start of the machine complained of: {_named(status.problems)}",
            "do what it says, then restart the appliance",
            "/security",
        )


def _finding(code: str, passed: bool, text: str, next_step: str, address: str) -> SecurityFinding:
    return SecurityFinding(
        code=code,
        passed=passed,
        text=text[:1].upper() + text[1:],
        next_step="" if passed else next_step,
        address=address,
    )


def _named(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = len(names) - _NAMED_MOST
    return ", ".join(names[:_NAMED_MOST]) + (f" and {more} more" if more > 0 else "")


def _are(count: int, what: str) -> str:
    return f"is one {what}" if count == 1 else f"are {count or 'no'} {what}s"
