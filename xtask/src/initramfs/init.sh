#!/bin/busybox sh
# First process of a test guest: says when it runs, then does what tessera.run= asks for.
/bin/busybox mount -t proc proc /proc
read -r uptime _ < /proc/uptime
echo "tessera-init: $uptime"
case " $(/bin/busybox cat /proc/cmdline) " in
*" tessera.run=poweroff "*) /bin/busybox poweroff -f ;;
esac
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ PS1='tessera# '
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2> /dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
read -r consoles < /sys/class/tty/console/active
tty=/dev/${consoles##* }
while true; do setsid -c sh < "$tty" > "$tty" 2>&1; done
