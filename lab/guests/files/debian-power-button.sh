#!/bin/sh
# Waits for the ACPI power button; logind would want a message bus for that.
for event in /sys/class/input/event*; do
    if [ "$(cat "$event/device/name")" = "Power Button" ]; then
        dd if="/dev/input/${event##*/}" bs=24 count=1 status=none >/dev/null
        exec systemctl poweroff
    fi
done
