"""A practice Hyper-V host: WS-Management in front, real VHDX files and QEMU guests behind."""
