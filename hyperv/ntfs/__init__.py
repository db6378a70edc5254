"""NTFS, as far as it takes to find where one file lies in a volume that nobody has mounted."""
