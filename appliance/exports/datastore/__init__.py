"""The folder of a recovery session as an NFS tree: disks over overlays, the rest in scratch files."""
