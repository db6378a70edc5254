"""What can be wrong with the machine that the appliance runs on."""

from __future__ import annotations

from appliance.base.errors import ApplianceError


class PropertyError(ApplianceError):
    """A deployment property cannot be used; the message names it. Set it on the console, or deploy
    again with a good value."""

    code = "machine.property"


class OvfEnvironmentError(ApplianceError):
    """What the hypervisor passed as deployment properties cannot be read; set the network on the
    console."""

    code = "machine.environment"


class DataDiskError(ApplianceError):
    """There is no data disk that can be used, and none was touched; the message says why. Attach
    the right one, or a blank one, and restart the appliance."""

    code = "machine.data-disk"


class FirewallClosedError(ApplianceError):
    """The firewall refused the rules made from the settings, so it lets nobody in; backups go on.
    Set the networks again on the console, or restart the appliance."""

    code = "machine.firewall-closed"


class NoFirewallError(ApplianceError):
    """No firewall could be loaded, so the daemon does not start; the message says why. Repair
    nftables, then restart the appliance."""

    code = "machine.no-firewall"


class MachineCommandError(ApplianceError):
    """A program of the system failed; its last words follow."""

    code = "machine.command"
