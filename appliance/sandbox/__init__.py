"""Boots untrusted guests in isolation and says what worked; see `boot` for the way in."""
