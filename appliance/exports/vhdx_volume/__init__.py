"""An NTFS volume with one VHDX file per disk, none of whose disk bytes are copied."""
