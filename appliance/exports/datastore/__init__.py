"""A recovery session folder as an NFS tree: disks over overlays, the rest in scratch files."""
