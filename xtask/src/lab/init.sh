#!/bin/busybox sh
# First process of the lab machine: the host's files below a scratch layer, then the job.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
p9=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$p9,cache=loose,ro" host /host
mount -t tmpfs -o size=90% scratch /scratch && mkdir /scratch/upper /scratch/work
mount -t overlay -o lowerdir=/host,upperdir=/scratch/upper,workdir=/scratch/work root /new
for dir in proc sys dev; do mount --move "/$dir" "/new/$dir"; done
mount -t tmpfs run /new/run && mkdir -m 1777 /new/run/lab /new/run/tmp /new/run/lock
mount -t 9p -o "$p9" job /new/run/lab
. /new/run/lab/prepare
$with chroot /new /bin/sh /run/lab/job < "$in" > "$out" 2> "$err"
echo $? > /new/run/lab/status
sync
poweroff -f
