#!/bin/sh
# The first process of a virtual machine that runs stories on the host's files. They are its root at first, over 9p, and cannot be changed;
# after that they are the lower layer of an overlay whose upper layer is in memory. The machine has its own devices, and what needs a disk
# is in /state. EROFS_VM_WORK comes from the kernel's command line: the directory with this script and with run.sh, which says what runs.
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

if [ "${1:-}" != inside ]; then
	mount -t tmpfs tmpfs /mnt
	mkdir /mnt/upper /mnt/work /mnt/root
	mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
	cd /mnt/root
	pivot_root . mnt
	exec chroot . /bin/sh "$EROFS_VM_WORK/init-host.sh" inside
fi

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw
umount -l /mnt
mkdir -p /dev/pts /dev/shm /dev/mqueue /state
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs tmpfs /run
if [ -d /sys/fs/bpf ]; then
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
else # without BPF the second version cannot keep containers from devices
	mount -t tmpfs tmpfs /sys/fs/cgroup
	for group in $(awk 'NR > 1 && $4 { print $1 }' /proc/cgroups); do
		mkdir "/sys/fs/cgroup/$group"
		mount -t cgroup -o "$group" cgroup "/sys/fs/cgroup/$group"
	done
fi
mount -t ext4 /dev/vda /state
ip link set lo up
hostname vm
ulimit -n 1048576
export TMPDIR=/state

# story NAME DIRECTORY PROGRAM ARGUMENT...: run a program in a directory, between marks that say how it ended and how long it took.
story() {
	local name=$1 directory=$2 status=0 began
	shift 2
	echo "=== vm: begin $name"
	began=$(date +%s)
	(cd "$directory" && exec "$@") || status=$?
	echo "=== vm: end $name $status after $(($(date +%s) - began)) s"
}

. "$EROFS_VM_WORK/run.sh"
echo "=== vm: release $(uname -r)"
sync
busybox poweroff -f
