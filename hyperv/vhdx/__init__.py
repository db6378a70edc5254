"""VHDX and VHD, the disk files of Hyper-V: read, shown without copying, and written.

    open_disk_file(source)      the disk in a file and its parents, as a block reader   (`reader`)
    FixedVhdxLayout(shape)      the bytes of the VHDX that would hold a disk             (`layout`)
    DynamicVhdxWriter(file, …)  a new file that holds only what was written              (`writer`)

Source: [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format" 8.0; "Virtual Hard Disk Image Format
Specification" 1.0 for VHD.
"""
