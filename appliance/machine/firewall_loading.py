"""Load the firewall, and fail closed: what cannot be loaded as it was meant lets nobody in.

    rules of the settings -> (refused) rules that admit nobody -> (refused) no firewall at all

Without any firewall the daemon does not start, so that nothing of ours listens (the unit
`holdfast-prepare` fails, which `holdfast` requires); SSH, which takes keys only, stays for repair.
Runs as root, in one thread. Source: nft(8): a file is applied whole or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.base.errors import ApplianceError
from appliance.machine.errors import FirewallClosedError, MachineCommandError, NoFirewallError
from appliance.machine.firewall import FirewallState, closed_rules
from appliance.machine.programs import run


@dataclass(frozen=True, slots=True, kw_only=True)
class FirewallOutcome:
    state: FirewallState
    problem: ApplianceError | None = None  # unless the state is SETTINGS


def load_rules(text: str) -> None:
    """Raises MachineCommandError: what was loaded before still holds."""
    run(["nft", "--file", "-"], text=text)


def load_firewall(text: str) -> FirewallOutcome:
    """The rules of the settings, as far as they can be had; does not raise."""
    try:
        load_rules(text)
    except MachineCommandError as error:
        refused = error
    else:
        return FirewallOutcome(state=FirewallState.SETTINGS)
    try:
        load_rules(closed_rules())
    except MachineCommandError as error:
        return FirewallOutcome(
            state=FirewallState.NONE,
            problem=NoFirewallError(
                f"no firewall, so the daemon does not start ({error}); repair nftables, then "
                "restart the appliance"
            ),
        )
    return FirewallOutcome(
        state=FirewallState.CLOSED,
        problem=FirewallClosedError(
            f"the firewall lets nobody in, as it refused the settings ({refused}); set the "
            "networks again on this console, or restart the appliance"
        ),
    )
