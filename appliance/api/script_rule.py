"""Who may have the appliance run a program: scripts of policies run as the daemon's user, so only
administrators set or change them; whoever may change a policy may leave them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.api.errors import ForbiddenError
from appliance.api.permissions import Permission, may
from appliance.api.route import Call
from appliance.catalog.policy import Policy


def refuse_new_scripts(call: Call, policies: Sequence[Policy]) -> None:
    """Raises ForbiddenError."""
    if may(call.caller.role, Permission.ADMINISTER):
        return
    saved = {policy.name: policy for policy in call.services.catalog.jobs.policies()}
    for policy in policies:
        known = saved.get(policy.name)
        before = (known.before, known.after) if known else (None, None)
        if (policy.before, policy.after) != before:
            raise ForbiddenError(
                f"policy {policy.name!r}: only administrators may set scripts, which run on the"
                " appliance"
            )
