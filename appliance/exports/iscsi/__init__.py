"""Disks served over iSCSI by tgt, whose backing files are devices of ours behind FUSE."""
