#!/bin/bash
# kernel.sh [SERIES...]: build the kernels that the virtual machine boots. Without arguments: all series below. A kernel goes to
# vm/linux-SERIES/ below ${EROFS_LAB_CACHE:-~/.cache/erofs-snapshotter}, as bzImage, config and release; one that is there and has
# this file's configuration is left alone. Each takes about 6 minutes on 2 idle cores, and meanwhile 3 GB of disk. The sources are
# Debian's packages, so that whoever has a mirror of Debian can make them. A series that cannot be built does not hold up the others:
# a backport is replaced by the next one in time.
#
# The packages that building and booting need are installed first, when they are missing (root).
set -euo pipefail
. "$(dirname "$0")/../lab/env.sh"

# What each series is for: 6.1 mounts EROFS only from block devices, 6.12 is the first one with file-backed mounts, 7.2 the newest.
declare -A suite=([6.1]=bookworm [6.12]=trixie [7.2]=trixie-backports)
all=(6.12 6.1 7.2)

# On top of x86_64_defconfig. Debian's own kernels have EROFS on demand off; it is on here for tests of EROFS over fscache, which exists
# up to 7.1. What a series does not know is left out by the kernel's configuration without a word; `wanted` names what must be there.
enable=(EROFS_FS EROFS_FS_XATTR EROFS_FS_ZIP EROFS_FS_BACKED_BY_FILE NETFS_SUPPORT FSCACHE CACHEFILES CACHEFILES_ONDEMAND
	EROFS_FS_ONDEMAND OVERLAY_FS VIRTIO VIRTIO_PCI VIRTIO_BLK VIRTIO_NET VIRTIO_CONSOLE NET_9P NET_9P_VIRTIO 9P_FS EXT4_FS
	FANOTIFY FANOTIFY_ACCESS_PERMISSIONS FS_VERITY BLK_DEV_LOOP
	USER_NS MEMCG CFS_BANDWIDTH BPF_SYSCALL CGROUP_BPF # runc; with control groups of version 2 devices are a matter of BPF
	BRIDGE VETH BRIDGE_NETFILTER NETFILTER_ADVANCED NETFILTER_XT_MATCH_COMMENT NETFILTER_XT_MATCH_MULTIPORT # CNI, and its iptables
	NF_TABLES NF_TABLES_INET NF_TABLES_IPV4 NF_TABLES_IPV6 NFT_COMPAT NFT_NAT NFT_MASQ NFT_CT TUN DUMMY
	XFS_FS BTRFS_FS FUSE_FS FUSE_PASSTHROUGH DM_FLAKEY DM_LOG_WRITES DM_SNAPSHOT IKCONFIG IKCONFIG_PROC)
disable=(DRM SOUND USB_SUPPORT WLAN WIRELESS MODULES DEBUG_KERNEL DEBUG_INFO NFS_FS NFSD HID SCSI ATA ETHERNET SECURITY_SELINUX AUDIT)
wanted=(EROFS_FS EROFS_FS_XATTR OVERLAY_FS VIRTIO_PCI VIRTIO_BLK 9P_FS NET_9P_VIRTIO EXT4_FS BLK_DEV_LOOP DEVTMPFS_MOUNT
	SERIAL_8250_CONSOLE TMPFS_XATTR FANOTIFY_ACCESS_PERMISSIONS BLK_DEV_INITRD RD_GZIP POSIX_MQUEUE SECCOMP_FILTER USER_NS MEMCG
	CGROUP_BPF CGROUP_DEVICE CGROUP_PIDS VETH BRIDGE NFT_COMPAT XFS_FS BTRFS_FS FUSE_FS DM_FLAKEY DM_LOG_WRITES)
declare -A wanted_too=([6.1]="EROFS_FS_ONDEMAND CACHEFILES_ONDEMAND" [6.12]="EROFS_FS_ONDEMAND CACHEFILES_ONDEMAND EROFS_FS_BACKED_BY_FILE"
	[7.2]="EROFS_FS_BACKED_BY_FILE")

# configuration SERIES: what the kernel's stamp says, so that a change of the lists makes a new kernel.
configuration() { echo "${enable[*]} -- ${disable[*]} -- ${suite[$1]}" | sha256sum | cut -c 1-16; }

packages() {
	local needed=(bc bison busybox-static e2fsprogs flex gcc libc6-dev libelf-dev libssl-dev make qemu-system-x86 xz-utils) missing=() p
	for p in "${needed[@]}"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}\n' "$p" 2>/dev/null | head -n 1)" = installed ] || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "this is not root; as root: apt-get update && apt-get install ${missing[*]}"
	apt-get update -qq >"$CACHE/logs/vm-packages.log" 2>&1 || die "apt-get update" "$CACHE/logs/vm-packages.log"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$CACHE/logs/vm-packages.log" 2>&1 ||
		die "apt-get install ${missing[*]}" "$CACHE/logs/vm-packages.log"
	note "packages installed: ${missing[*]}"
}

# kernel SERIES: build it unless it is there.
kernel() {
	local series=$1 start log=$CACHE/logs/linux-$1.log out=$CACHE/vm/linux-$1 src=$CACHE/src/linux-$1
	[ "$(cat "$out/stamp" 2>/dev/null)" != "$(configuration "$series")" ] || return 0
	start=$(date +%s)
	build "$series" "$out" "$src" >"$log" 2>&1 || die "build linux $series" "$log"
	rm -rf "$src"
	configuration "$series" >"$out/stamp"
	note "linux $(cat "$out/release") built in $(seconds_since "$start")"
}

# Both run as the left side of ||, where set -e does not work; hence the chains.
build() {
	local series=$1 out=$2 src=$3
	rm -rf "$out" "$src" && mkdir -p "$out" "$src" && cd "$src" &&
		private_apt "${suite[$series]}" deb update -qq &&
		private_apt "${suite[$series]}" deb download -qq "linux-source-$series" &&
		dpkg -x linux-source-*.deb package && tar -xf package/usr/src/linux-source-*.tar.xz && rm -rf package linux-source-*.deb &&
		cd linux-source-* && configure && has_wanted "$series" &&
		nice -n 19 make -s -j"$(nproc)" KBUILD_BUILD_USER=builder KBUILD_BUILD_HOST=localhost bzImage &&
		make -s kernelrelease >"$out/release" && cp .config "$out/config" && cp arch/x86/boot/bzImage "$out/bzImage"
}

configure() {
	local o options=()
	for o in "${enable[@]}"; do options+=(--enable "$o"); done
	for o in "${disable[@]}"; do options+=(--disable "$o"); done
	make -s x86_64_defconfig && scripts/config "${options[@]}" && make -s olddefconfig
}

# has_wanted SERIES: an option whose dependencies are missing vanishes from the configuration silently.
has_wanted() {
	local o missing=()
	# shellcheck disable=SC2086 # a list of words
	for o in "${wanted[@]}" ${wanted_too[$1]}; do grep -q "^CONFIG_$o=y" .config || missing+=("$o"); done
	[ ${#missing[@]} -eq 0 ] || { echo "options missing from the configuration: ${missing[*]}"; return 1; }
}

# A function is read to its end before it runs: an edit of this file meanwhile does no harm.
main() {
	local series failed=()
	[ $# -gt 0 ] || set -- "${all[@]}"
	locked vm-packages packages
	for series; do
		[ -n "${suite[$series]:-}" ] || die "no series $series, only ${all[*]}"
		locked "linux-$series" kernel "$series" || failed+=("$series")
	done
	[ ${#failed[@]} -eq 0 ] || die "not built: ${failed[*]}"
}

main "$@"
