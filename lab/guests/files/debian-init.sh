#!/bin/sh
# Process 1 in the debian guest's initramfs: find the root file system and hand over to systemd.

. /bin/start.sh holdfast-root
mount -t ext4 "$partition" /root
umount /dev/pts 2>/dev/null
mount --move /dev /root/dev
mount --move /sys /root/sys
mount --move /proc /root/proc
exec switch_root /root /sbin/init
