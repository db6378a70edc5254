"""What can be wrong with the catalog. The docstrings are what the operator reads."""

from __future__ import annotations

from appliance.base.errors import ApplianceError


class CatalogError(ApplianceError):
    """The catalog of hosts and runs cannot be used; the message says why. Restoring needs none."""

    code = "catalog.failed"


class CatalogBusyError(CatalogError):
    """Other processes kept the catalog locked; run the command again."""

    code = "catalog.busy"
    retryable = True


class CatalogVersionError(CatalogError):
    """A newer Holdfast has used this state folder. Update Holdfast, then try again."""

    code = "catalog.version"


class CatalogDamagedError(CatalogError):
    """A file of the state folder is damaged or not of Holdfast; the message names it.

    Move it away and add the hosts again; no recovery point depends on it.
    """

    code = "catalog.damaged"


class HostNotFoundError(CatalogError):
    """No host of this name is registered; `holdfast host list` shows those that are."""

    code = "host.not-found"

    def __init__(self, name: str) -> None:
        super().__init__(f"no host {name!r} is registered")
        self.name = name


class HostExistsError(CatalogError):
    """This host is registered already; remove it first to change its address or password."""

    code = "host.exists"


class HostInUseError(CatalogError):
    """Something that Holdfast made on the host is not removed yet, or a backup is running.

    Wait for it; the next backup from this host removes what a killed one left. `--force` forgets
    it.
    """

    code = "host.in-use"


class SecretsKeyLostError(CatalogError):
    """The file `secrets.key` that seals passwords is missing or another one.

    Put the right one back, or remove the hosts and add them again with their passwords.
    """

    code = "secrets.key-lost"


class SecretDamagedError(CatalogError):
    """A sealed password, or what it belongs to, was changed in the catalog.

    Remove the host and add it again; find out who can write to the state folder.
    """

    code = "secrets.damaged"


class RunNotFoundError(CatalogError):
    """The catalog has no run of this id."""

    code = "run.not-found"


class RunInterruptedError(CatalogError):
    """The process of the run was killed before it ended; nothing was committed. Run it again."""

    code = "run.interrupted"


class SigningKeyLostError(CatalogError):
    """The file `signing.key` that signs certificates is missing, and certificates are there.

    Put it back from a copy. Without one, move the folder `certificates` away: a new chain begins,
    with a new key that whoever checks certificates must be told of.
    """

    code = "certificate.key-lost"


class AccountNotFoundError(CatalogError):
    """There is no such account; the list of accounts shows which there are."""

    code = "account.not-found"


class AccountExistsError(CatalogError):
    """There is an account of this name already, or set-up was done; choose another name."""

    code = "account.exists"


class AccountLockedError(CatalogError):
    """Too many wrong attempts; wait until the time that is named, then try again."""

    code = "account.locked"
    retryable = True


class WrongLoginError(CatalogError):
    """User, password or one-time code is wrong; nothing says which."""

    code = "account.wrong-login"


class LastAdministratorError(CatalogError):
    """The only administrator cannot be removed, disabled or made something else."""

    code = "account.last-administrator"


class TokenNotFoundError(CatalogError):
    """There is no API token of this name."""

    code = "token.not-found"


class JobNotFoundError(CatalogError):
    """There is no job of this name; `holdfast job list` shows those that there are."""

    code = "job.not-found"

    def __init__(self, name: str) -> None:
        super().__init__(f"no job {name!r}")


class JobExistsError(CatalogError):
    """There is a job or a policy of this name already; choose another name, or change that one."""

    code = "job.exists"


class PolicyNotFoundError(CatalogError):
    """There is no policy of this name; add it to the file, or name one that exists."""

    code = "policy.not-found"

    def __init__(self, name: str, asked_by: str = "") -> None:
        super().__init__(f"no policy {name!r}{f', which job {asked_by!r} names' * bool(asked_by)}")


class PolicyInUseError(CatalogError):
    """Jobs go by this policy; give them another one first."""

    code = "policy.in-use"


class JobRunningError(CatalogError):
    """A run of this job waits or goes on; two never overlap. Let it end, or cancel it."""

    code = "job.running"


class ChannelNotFoundError(CatalogError):
    """There is no such notification channel; `holdfast notify list` shows those that there are."""

    code = "notify.not-found"


class ChannelExistsError(CatalogError):
    """There is a notification channel of this name; remove it first to change it."""

    code = "notify.exists"


class ApprovalError(CatalogError):
    """A second administrator's approval is needed, or cannot be given; the message says why."""

    code = "approval.failed"


class ApprovalNotFoundError(ApprovalError):
    """There is no such request; `holdfast approval list` shows those that there are."""

    code = "approval.not-found"


class ApprovalDecidedError(ApprovalError):
    """The request is decided or has expired; ask anew if it is still wanted."""

    code = "approval.decided"


class OwnRequestError(ApprovalError):
    """Who asked cannot approve; another administrator has to."""

    code = "approval.own-request"
