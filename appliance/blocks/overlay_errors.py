"""Errors of the overlay. A damaged or foreign session is refused by name, never half opened."""

from __future__ import annotations

from appliance.base.errors import ApplianceError


class OverlayError(ApplianceError):
    """The writes of a recovery session cannot be used; the message names the folder and why."""

    code = "overlay.error"


class OverlayMissingError(OverlayError):
    """There is no session in this folder. Start a new one."""

    code = "overlay.missing"


class OverlayExistsError(OverlayError):
    """The folder holds a session already; open or discard it instead."""

    code = "overlay.exists"


class OverlayBusyError(OverlayError):
    """Another process, or this one, has the session open. Stop it first."""

    code = "overlay.busy"
    retryable = True


class OverlayMismatchError(OverlayError):
    """The session belongs to another disk or recovery point; mixing them would corrupt the disk."""

    code = "overlay.mismatch"


class OverlayVersionError(OverlayError):
    """The session was written by a newer Holdfast. Use that version to open it."""

    code = "overlay.version"


class OverlayCorruptError(OverlayError):
    """Acknowledged writes of the session are damaged. Keep the folder; discard it to go on."""

    code = "overlay.corrupt"


class OverlayFailedError(OverlayError):
    """The storage lost a write, so no more are taken. Reopen to get the last flushed state."""

    code = "overlay.failed"
