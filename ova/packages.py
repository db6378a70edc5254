"""What the appliance is made of: Debian packages, and what of them is left out.

Only Debian 12 `main`, from the sources of the machine that builds. Kernel modules for hardware that
no virtual machine has are left out by dpkg itself, which keeps doing so at updates of the kernel.
"""

from __future__ import annotations

PACKAGES = (
    # the system
    *("linux-image-amd64", "systemd-sysv", "systemd-resolved", "libpam-systemd", "dbus", "udev"),
    *("initramfs-tools", "zstd", "kmod", "iproute2", "iputils-ping", "less", "tzdata"),
    *("openssh-server", "sudo", "ca-certificates", "netbase", "chrony", "nftables"),
    *("unattended-upgrades", "open-vm-tools"),
    # what Holdfast needs
    *("python3", "python3-venv", "fuse3", "libfuse2", "nbdkit", "tgt"),
    *("qemu-system-x86", "qemu-utils"),  # the sandbox, and disk formats
    *("e2fsprogs", "xfsprogs", "ntfs-3g", "dosfstools"),  # the data disk; checks of guests' disks
)
EXCLUDED = (
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"),
    *("/usr/share/lintian/*", "/usr/share/bug/*", "/usr/share/icons/*"),
    *("/lib/modules/*/kernel/sound/*", "/lib/modules/*/kernel/net/bluetooth/*"),
    *("/lib/modules/*/kernel/net/wireless/*", "/lib/modules/*/kernel/net/mac80211/*"),
    *(
        f"/lib/modules/*/kernel/drivers/{folder}/*"
        for folder in (
            *("gpu", "media", "bluetooth", "infiniband", "staging", "iio", "isdn", "comedi"),
            *("net/wireless", "net/ethernet", "net/can", "net/usb", "net/fddi", "net/hamradio"),
            *("hwmon", "input/touchscreen", "input/joystick", "input/tablet", "leds", "mfd"),
            *("nfc", "firewire", "thunderbolt", "android", "platform/x86", "usb/gadget"),
            *("usb/serial", "edac", "power", "rtc", "soundwire", "w1", "mmc", "mtd"),
        )
    ),
)
INCLUDED = (
    "/usr/share/doc/*/copyright",
    "/usr/share/locale/locale.alias",
    # what a hypervisor shows instead of its own network card
    "/lib/modules/*/kernel/drivers/net/ethernet/intel/e1000*",
    "/lib/modules/*/kernel/drivers/net/ethernet/amd/pcnet32*",
    "/lib/modules/*/kernel/drivers/net/ethernet/realtek/8139*",
    "/lib/modules/*/kernel/drivers/net/ethernet/microsoft/*",
)
