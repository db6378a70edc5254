#!/bin/sh
# Called by udhcpc with the lease in the environment.
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
[ -n "$router" ] && ip route add default via "${router%% *}"
[ -n "$dns" ] && mkdir -p /etc && echo "nameserver ${dns%% *}" >/etc/resolv.conf
exit 0
