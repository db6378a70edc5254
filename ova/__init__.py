"""Builds the appliance: Debian 12 with Holdfast, as OVA, qcow2 and VHDX. Not part of the wheel."""
