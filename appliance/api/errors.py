"""Errors of the API itself, and which HTTP status an error of ours becomes."""

from __future__ import annotations

from appliance.base.errors import ApplianceError, CancelledError, UsageError
from appliance.catalog.errors import (
    AccountExistsError,
    AccountLockedError,
    AccountNotFoundError,
    ApprovalDecidedError,
    ApprovalError,
    ApprovalNotFoundError,
    ChannelExistsError,
    ChannelNotFoundError,
    HostExistsError,
    HostInUseError,
    HostNotFoundError,
    JobExistsError,
    JobNotFoundError,
    JobRunningError,
    LastAdministratorError,
    OwnRequestError,
    PolicyInUseError,
    PolicyNotFoundError,
    RunNotFoundError,
    TokenNotFoundError,
    WrongLoginError,
)
from appliance.exports.datastore.session import SessionBusyError, SessionNotFoundError
from appliance.repository.errors import PointNotFoundError, RepositoryNotFoundError
from appliance.service.job_service import RunEndedError
from appliance.service.points_in_use import PointInUseError
from appliance.service.proofs import ProofNotFoundError
from appliance.targets.recovery import DowntimeNeededError


class NotLoggedInError(ApplianceError):
    """Log in, or send a token that is good, as `Authorization: Bearer …`."""

    code = "api.not-logged-in"


class ForbiddenError(ApplianceError):
    """Your role does not allow this; an administrator can."""

    code = "api.forbidden"


class CsrfError(ApplianceError):
    """The request does not come from a page of this login; reload the page."""

    code = "api.csrf"


class TooManyRequestsError(ApplianceError):
    """Too many requests from this address; wait a little."""

    code = "api.too-many-requests"
    retryable = True


class NotFoundError(ApplianceError):
    """There is nothing at this address."""

    code = "api.not-found"


class BodyError(UsageError):
    """The request is not as the API describes it; the message names the field."""

    code = "api.body"


_STATUS: tuple[tuple[type[ApplianceError], int], ...] = (
    (NotLoggedInError, 401),
    (WrongLoginError, 401),
    (ForbiddenError, 403),
    (CsrfError, 403),
    (AccountLockedError, 423),
    (TooManyRequestsError, 429),
    (NotFoundError, 404),
    (AccountNotFoundError, 404),
    (ChannelNotFoundError, 404),
    (ApprovalNotFoundError, 404),
    (ApprovalDecidedError, 409),
    (OwnRequestError, 403),
    (ApprovalError, 409),
    (HostNotFoundError, 404),
    (PointNotFoundError, 404),
    (RepositoryNotFoundError, 404),
    (RunNotFoundError, 404),
    (SessionNotFoundError, 404),
    (TokenNotFoundError, 404),
    (ProofNotFoundError, 404),
    (JobNotFoundError, 404),
    (PolicyNotFoundError, 404),
    (JobExistsError, 409),
    (JobRunningError, 409),
    (PolicyInUseError, 409),
    (RunEndedError, 409),
    (PointInUseError, 409),
    (SessionBusyError, 409),
    (DowntimeNeededError, 409),
    (AccountExistsError, 409),
    (ChannelExistsError, 409),
    (HostExistsError, 409),
    (HostInUseError, 409),
    (LastAdministratorError, 409),
    (CancelledError, 409),
    (BodyError, 422),
    (UsageError, 422),
)
OTHERWISE = 502  # something behind the API failed: a hypervisor, a disk


def status_of(error: ApplianceError) -> int:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), OTHERWISE)
