#!/bin/bash
# tools.sh [STEP...]: install the third-party programs that tests, demo and benchmarks use. Nothing of this is a dependency of the
# product. Programs go to bin/ below ${EROFS_LAB_CACHE:-~/.cache/erofs-snapshotter}; a step whose version is there already does nothing.
#
# Steps (without arguments: all, in this order):
#   packages     Debian packages, through the machine's apt; only what is missing; needs root
#   containerd   containerd, ctr and the runc shim
#   containerd-1.7, containerd-2.1
#                older containerds, from packages of newer Debians, in directories of their own: containerd-1.7/bin, containerd-2.1/bin
#   runc
#   registry     the distribution registry
#   crane        pushes OCI layouts
#   skopeo       makes images as podman does; of a newer Debian, with the libraries it needs, in a directory of its own: skopeo/
#   ministargz   the stargz snapshotter, a peer of benchmarks
#   cni          CNI plugins for pods with a network of their own
#   erofs-utils  mkfs, fsck and dump.erofs, from the source package of a newer Debian
#   staticcheck
set -euo pipefail
. "$(dirname "$0")/env.sh"

# To move to another version, change it here: the stamp of the old one no longer matches.
containerd=v2.4.2
containerd17=1.7.24
containerd17_suite=trixie
containerd21=2.1.9
containerd21_suite=forky
runc=v1.5.2
registry=v3.1.2
crane=v0.22.1
skopeo=1.18.0
skopeo_suite=trixie
cni=v1.9.1
erofs_utils=1.9.4
erofs_utils_suite=forky
staticcheck=v0.8.2

# installed NAME VERSION PROGRAM...: is this version there?
installed() {
	local name=$1 version=$2 program
	shift 2
	[ "$(cat "$CACHE/stamps/$name" 2>/dev/null)" = "$version" ] || return 1
	for program; do [ -x "$CACHE/bin/$program" ] || return 1; done
}

# go_tool NAME VERSION TAGS "PROGRAM..." PACKAGE...: go install PACKAGE@VERSION
go_tool() {
	local name=$1 version=$2 tags=$3 programs=$4 start packages
	shift 4
	# shellcheck disable=SC2086 # a list of words
	installed "$name" "$version" $programs && return
	start=$(date +%s)
	packages=("${@/%/@$version}")
	# The flags of an ordinary build: the standard library is then compiled once for these and for the project's tests.
	GOBIN=$CACHE/bin GOFLAGS= CGO_ENABLED=1 go install -tags "$tags" -ldflags '-s -w' "${packages[@]}" 2>"$CACHE/logs/$name.log" ||
		die "go install ${packages[*]}" "$CACHE/logs/$name.log"
	echo "$version" >"$CACHE/stamps/$name"
	note "$name $version installed in $(seconds_since "$start")"
}

step_packages() {
	local wanted=(acl attr autoconf automake bc busybox-static ca-certificates curl dpkg-dev e2fsprogs xfsprogs btrfs-progs gcc iptables isal libc6-dev
		liblz4-dev liblzma-dev libseccomp-dev libtool libzstd-dev make mmdebstrap nodejs openssl pigz pkg-config time uuid-dev xz-utils
		zlib1g-dev zstd)
	local missing=() p start
	command -v npm >/dev/null || wanted+=(npm)
	for p in "${wanted[@]}"; do
		# A nodejs that does not come from Debian serves as well.
		[ "$p" = nodejs ] && command -v node >/dev/null && continue
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
	done
	# Container images of Debian come without apt's lists, which the other steps need too.
	[ ${#missing[@]} -gt 0 ] || ! debian_mirror >/dev/null || return 0
	[ "$(id -u)" = 0 ] || die "this is not root; as root: apt-get update && apt-get install ${missing[*]}"
	start=$(date +%s)
	apt-get update -qq >"$CACHE/logs/packages.log" 2>&1 || die "apt-get update" "$CACHE/logs/packages.log"
	[ ${#missing[@]} -gt 0 ] || return 0
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$CACHE/logs/packages.log" 2>&1 ||
		die "apt-get install ${missing[*]}" "$CACHE/logs/packages.log"
	note "packages installed in $(seconds_since "$start"): ${missing[*]}"
}

step_containerd() {
	local c=github.com/containerd/containerd/v2/cmd
	go_tool containerd $containerd no_btrfs "containerd ctr containerd-shim-runc-v2" $c/containerd $c/ctr $c/containerd-shim-runc-v2
}
step_containerd-1.7() { debian_containerd 1.7 $containerd17 $containerd17_suite; }
step_containerd-2.1() { debian_containerd 2.1 $containerd21 $containerd21_suite; }
step_runc() { go_tool runc $runc seccomp runc github.com/opencontainers/runc; }
step_registry() { go_tool registry $registry "" registry github.com/distribution/distribution/v3/cmd/registry; }
step_crane() { go_tool crane $crane "" crane github.com/google/go-containerregistry/cmd/crane; }
step_cni() {
	local p=github.com/containernetworking/plugins/plugins
	go_tool cni $cni "" "bridge loopback host-local portmap firewall tuning" \
		$p/main/bridge $p/main/loopback $p/ipam/host-local $p/meta/portmap $p/meta/firewall $p/meta/tuning
}
step_staticcheck() { go_tool staticcheck $staticcheck "" staticcheck honnef.co/go/tools/cmd/staticcheck; }

# The stargz snapshotter's own daemon cannot be had with "go install", its library can.
step_ministargz() {
	local stargz start log=$CACHE/logs/ministargz.log
	stargz=$(sed -n 's|.*containerd/stargz-snapshotter v|v|p' "$HERE/ministargz/go.mod")
	installed ministargz "$stargz" ministargz && [ "$HERE/ministargz/main.go" -ot "$CACHE/bin/ministargz" ] && return
	start=$(date +%s)
	(cd "$HERE/ministargz" && GOFLAGS= CGO_ENABLED=1 go build -ldflags '-s -w' -o "$CACHE/bin/ministargz" .) >"$log" 2>&1 || die "build ministargz" "$log"
	echo "$stargz" >"$CACHE/stamps/ministargz"
	note "ministargz $stargz built in $(seconds_since "$start")"
}

# Debian's stable mkfs.erofs is too old for containerd's erofs differ (no --tar), and the programs of newer releases need a newer libc.
step_erofs-utils() {
	installed erofs-utils $erofs_utils mkfs.erofs fsck.erofs dump.erofs && return
	local start log=$CACHE/logs/erofs-utils.log src=$CACHE/src/erofs-utils
	start=$(date +%s)
	build_erofs_utils >"$log" 2>&1 || die "build erofs-utils $erofs_utils" "$log"
	rm -rf "$src"
	echo $erofs_utils >"$CACHE/stamps/erofs-utils"
	note "erofs-utils $erofs_utils built in $(seconds_since "$start")"
}

# Runs as the left side of ||, where set -e does not work; hence the chain.
build_erofs_utils() {
	rm -rf "$src" && mkdir -p "$src" && cd "$src" &&
		private_apt $erofs_utils_suite deb-src update -qq &&
		private_apt $erofs_utils_suite deb-src source -qq --download-only "erofs-utils=$(debian_revision)" &&
		dpkg-source -x erofs-utils_*.dsc tree && cd tree && ./autogen.sh &&
		./configure --enable-lz4 --enable-lzma --with-libzstd --without-libdeflate --disable-fuse --without-selinux \
			--without-libcurl --without-openssl --without-libxml2 --without-json-c &&
		make -j"$(nproc)" &&
		install -s mkfs/mkfs.erofs fsck/fsck.erofs dump/dump.erofs "$CACHE/bin/"
}

# debian_containerd LINE VERSION SUITE: containerd with its own ctr and shim: a daemon does not understand the shim of another line.
# These programs need only an old libc. The suite may have a later VERSION of the LINE by now, which serves as well.
debian_containerd() {
	local name=containerd-$1 line=$1 version=$2 suite=$3 start log=$CACHE/logs/containerd-$1.log src=$CACHE/src/containerd-$1
	installed "$name" "$version" "../$name/bin/"{containerd,ctr,containerd-shim-runc-v2} && return
	start=$(date +%s)
	unpack_debian_containerd >"$log" 2>&1 || die "install containerd $line of Debian $suite" "$log"
	rm -rf "$src"
	echo "$version" >"$CACHE/stamps/$name"
	note "$("$CACHE/$name/bin/containerd" --version) installed in $(seconds_since "$start")"
}

# Runs as the left side of ||, where set -e does not work; hence the chain.
unpack_debian_containerd() {
	rm -rf "$src" && mkdir -p "$src" "$CACHE/$name/bin" && cd "$src" &&
		private_apt "$suite" deb update -qq &&
		private_apt "$suite" deb download -qq containerd &&
		case $(dpkg-deb -f containerd_*.deb Version) in
		"$line".*) ;;
		*) echo "$suite has moved on to" containerd_*.deb "and has no containerd $line any more: name another suite in tools.sh" && false ;;
		esac &&
		dpkg -x containerd_*.deb tree &&
		install tree/usr/bin/{containerd,ctr,containerd-shim-runc-v2} "$CACHE/$name/bin/"
}

# The skopeo of Debian 12 writes zstd:chunked with the annotations of another dialect, and those of newer releases need a newer libc:
# it comes with its own.
step_skopeo() {
	installed skopeo $skopeo skopeo ../skopeo/usr/bin/skopeo && return
	local start log=$CACHE/logs/skopeo.log src=$CACHE/src/skopeo
	start=$(date +%s)
	unpack_skopeo >"$log" 2>&1 || die "install skopeo of Debian $skopeo_suite" "$log"
	echo $skopeo >"$CACHE/stamps/skopeo"
	note "$("$CACHE/bin/skopeo" --version) installed in $(seconds_since "$start")"
	rm -rf "$src"
}

# Runs as the left side of ||, where set -e does not work; hence the chain.
unpack_skopeo() {
	local deb
	rm -rf "$src" "$CACHE/skopeo" && mkdir -p "$src" "$CACHE/skopeo" && cd "$src" &&
		private_apt $skopeo_suite deb update -qq &&
		private_apt $skopeo_suite deb download -qq skopeo libc6 libgpgme11t64 libassuan9 libgpg-error0 libsqlite3-0 &&
		for deb in *.deb; do dpkg -x "$deb" "$CACHE/skopeo" || return; done &&
		cat >"$CACHE/bin/skopeo" <<-'SH' && chmod 755 "$CACHE/bin/skopeo" && "$CACHE/bin/skopeo" --version
			#!/bin/sh
			# The program with the loader and the libraries that came with it.
			dir=$(dirname "$(dirname "$(readlink -f "$0")")")/skopeo/usr
			set -- "$dir/bin/skopeo" "$@"
			for loader in "$dir"/lib/*/ld-linux-*.so.*; do
				exec "$loader" --library-path "$(dirname "$loader")" "$@"
			done
		SH
}

# debian_revision: the Debian version, such as 1.9.4-1, that the suite has of the wanted release. Once the suite has moved on, what
# it has then: a tool for tests may be newer, and must not make them impossible.
debian_revision() {
	local offered
	offered=$(private_apt $erofs_utils_suite deb-src source --print-uris -qq erofs-utils | sed -n "s/.*erofs-utils_\([^ ]*\)\.dsc .*/\1/p")
	{ grep "^$erofs_utils-" <<<"$offered" || echo "$offered"; } | head -n 1
}

# A function is read to its end before it runs: an edit of this file meanwhile does no harm.
main() {
	local step
	[ $# -gt 0 ] || set -- packages erofs-utils containerd containerd-1.7 containerd-2.1 runc registry crane skopeo ministargz cni staticcheck
	for step; do
		declare -F "step_$step" >/dev/null || die "no step $step; the head of $0 lists them"
		locked "tool-$step" "step_$step"
	done
}

main "$@"
