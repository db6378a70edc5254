#!/bin/sh
# Process 1 of the tiny guest. Serial line commands, one per line, each answered by one line:
#   journal start | journal stop     append numbered records, ACK n after each fsync
#   change N                         write N MiB of new files, sync: CHANGED total
#   freeze | thaw                    stop writes to the file system and let them go: FROZEN | THAWED
#   sum                              md5 of every changed file: SUM hex
#   fetch HOST PORT                  try an HTTP GET: FETCH ok | FETCH failed
#   resolve NAME SERVER              ask a name server: RESOLVE ok (it answered) | RESOLVE failed
#   poweroff                         clean shutdown, as the ACPI power button

. /bin/start.sh holdfast-tiny

exec 3<>/dev/ttyS0 # kept open: input that arrives while nobody has it open is lost
stty -echo -onlcr <&3
journal_device=${partition%1}2
mount -t ext4 "$partition" /data

say() {
    echo "$1" >&3
    echo "$1" >/dev/tty0
}

shut_down() {
    [ -e /run/journal ] && kill "$(cat /run/journal)"
    sync
    umount /data
    poweroff -f
}

# Opened before the guest says that it is ready, so that no press from then on is missed.
power_button() {
    for event in /sys/class/input/event*; do
        if [ "$(cat "$event/device/name")" = "Power Button" ]; then
            exec 4<"/dev/input/${event##*/}"
            { dd bs=24 count=1 <&4 >/dev/null 2>&1 && shut_down; } &
            return
        fi
    done
}

# A record is one 512-byte sector: 32 lines of 15 digits, all the same number.
journal() {
    newline='
'
    last=$(tr -d '\000' <"$journal_device" | tail -n 1 | sed 's/^0*//')
    number=$((${last:-0} + 1))
    while [ "$number" -le 16384 ]; do
        padded=00000000000000$number
        record=${padded#"${padded%???????????????}"}$newline
        record=$record$record$record$record
        record=$record$record$record$record
        record=$record$record
        if ! printf %s "$record" |
            dd of="$journal_device" bs=512 seek=$((number - 1)) conv=notrunc,fsync 2>/dev/null; then
            echo "JOURNAL FAILED $number" >&3
            return
        fi
        echo "ACK $number" >&3
        number=$((number + 1))
    done
    echo "JOURNAL FULL" >&3
}

journal_control() {
    if [ -e /run/journal ]; then
        kill "$(cat /run/journal)"
        rm /run/journal
    fi
    if [ "$1" = start ]; then
        journal &
        echo $! >/run/journal
    fi
    say "JOURNAL $1"
}

change() {
    total=$(cat /data/changes 2>/dev/null)
    total=$((${total:-0} + 1))
    dd if=/dev/urandom of="/data/change-$total" bs=1M count="$1" 2>/dev/null &&
        echo $total >/data/changes &&
        sync &&
        say "CHANGED $total"
}

network() {
    ip link set lo up
    for device in /sys/class/net/eth*; do
        device=${device##*/}
        ip link set "$device" up
        udhcpc -i "$device" -n -q -t 10 -T 1 -s /bin/dhcp.sh >/dev/null 2>&1
    done
}

boots=$(cat /data/boots 2>/dev/null)
echo $((${boots:-0} + 1)) >/data/boots
mkdir -p /data/www
echo "holdfast tiny guest $boot_id" >/data/www/index.html
sync
printf '#!/bin/sh\necho "HOLDFAST tiny %s"\n' "$boot_id" >/bin/greet
chmod +x /bin/greet

power_button
network
httpd -p 8080 -h /data/www
nc -ll -p 7777 -e /bin/greet &
until [ "$(netstat -ltn | grep -c -E ':(7777|8080) ')" -ge 2 ]; do
    sleep 0.05
done
say "HOLDFAST-READY tiny $boot_id"

while true; do
    while read -r verb first second; do
        case $verb in
        journal) journal_control "$first" ;;
        change) change "$first" ;;
        freeze) sync && fsfreeze --freeze /data && say FROZEN ;;
        thaw) fsfreeze --unfreeze /data && say THAWED ;;
        sum) say "SUM $(cat /data/change-* 2>/dev/null | md5sum | cut -d' ' -f1)" ;;
        fetch)
            # busybox wget 1.35 (Debian's static build) crashes before it connects
            printf 'GET / HTTP/1.0\r\n\r\n' | timeout 10 nc "$first" "$second" 2>/dev/null |
                grep -q . &&
                say "FETCH ok" || say "FETCH failed"
            ;;
        resolve)
            nslookup "$first" "$second" 2>&1 | grep -q "no servers could be reached" &&
                say "RESOLVE failed" || say "RESOLVE ok"
            ;;
        poweroff) shut_down ;;
        esac
    done <&3
done
