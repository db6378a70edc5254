"""The machine that the appliance is: first boot, network, data disk, firewall, console, updates.

Only for the appliance image, where systemd runs `holdfast-machine`; Holdfast installed by other
means never comes here.
"""
