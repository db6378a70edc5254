#!/bin/sh
# Serial line commands of the debian guest, one per line, each answered by one line:
#   change N     write N MiB of new files, update page and counter, sync: CHANGED total
#   freeze       stop writes to the root file system: FROZEN
#   thaw         let them go: THAWED
#   sum          md5 of every changed file: SUM hex
#   poweroff     clean shutdown

exec 3<>/dev/ttyS0 # kept open: input that arrives while nobody has it open is lost
files=/srv/holdfast
www=/var/www/html
read -r boot_id </proc/sys/kernel/random/boot_id

write_page() {
    cat >"$www/index.html" <<PAGE
<!DOCTYPE html>
<title>Holdfast lab guest</title>
<h1>Holdfast debian guest</h1>
<p>changes: $1</p>
<p>boot: $boot_id</p>
PAGE
    echo "$1" >"$www/counter.txt"
}

change() {
    total=$(($(cat "$www/counter.txt") + 1))
    dd if=/dev/urandom of="$files/change-$total" bs=1M count="$1" status=none &&
        write_page "$total" &&
        sync &&
        echo "CHANGED $total" >&3
}

stty -echo -onlcr <&3
write_page "$(cat "$www/counter.txt")"
sync
echo "HOLDFAST-READY debian $boot_id" >&3

while true; do
    while read -r verb first; do
        case $verb in
        change) change "$first" ;;
        freeze) sync && fsfreeze --freeze / && echo FROZEN >&3 ;;
        thaw) fsfreeze --unfreeze / && echo THAWED >&3 ;;
        sum) echo "SUM $(cat "$files"/change-* 2>/dev/null | md5sum | cut -d' ' -f1)" >&3 ;;
        poweroff) systemctl poweroff ;;
        esac
    done <&3
done
