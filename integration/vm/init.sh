#!/bin/busybox sh
# The first process of the virtual machine. Its environment comes from the kernel's command line: EROFS_VM_*, EROFS_TEST_REQUIRE.
# What the tests print goes to the second serial line, between marks that say which program runs and how it ended; the first one is
# the kernel's.
/bin/busybox --install -s /bin 2>/dev/null # it does not replace the id that is there
export PATH=/bin TMPDIR=/tmp HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
ip link set lo up
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw
cd /tests
for program in *.test; do
	echo "=== vm: begin $program"
	"./$program" -test.v -test.timeout 20m
	echo "=== vm: end $program $?"
done
echo "=== vm: release $(uname -r)"
sync
poweroff -f
