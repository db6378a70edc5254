"""What can go wrong in the boot sandbox; part of the appliance's error tree."""

from __future__ import annotations

from appliance.base.errors import ApplianceError


class SandboxError(ApplianceError):
    """The sandbox machine failed; the message holds QEMU's last words. Nothing was left running."""

    code = "sandbox.failed"


class QmpError(SandboxError):
    """QEMU refused or did not answer a control command; the machine is being stopped."""

    code = "sandbox.qmp"


class PictureError(SandboxError):
    """A screenshot cannot be read as a picture; it proves nothing. Take another one."""

    code = "sandbox.picture"
