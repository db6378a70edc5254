# Sourced by both guests' init: kernel file systems, modules, and the root partition by its label.
# Leaves: $boot_id, $partition (of the label given as $1).

export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
read -r boot_id </proc/sys/kernel/random/boot_id
while read -r module; do
    insmod "/modules/$module.ko"
done </modules/order

# Controllers find their disks in the background.
tries=0
until partition=$(findfs "LABEL=$1" 2>/dev/null); do
    tries=$((tries + 1))
    if [ "$tries" -gt 300 ]; then
        echo "no partition is labelled $1" >/dev/ttyS0
        poweroff -f
    fi
    sleep 0.1
done
