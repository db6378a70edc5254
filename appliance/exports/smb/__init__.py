"""Files that are devices of ours as shares of SMB 3, by Samba."""
