#!/bin/bash
# images.sh [NAME...]: make the images that tests, demo and benchmarks pull, as OCI layouts images/NAME-gzip and images/NAME-zstd below
# ${EROFS_LAB_CACHE:-~/.cache/erofs-snapshotter}; their layers stay as layers/*.tar. What is there already is kept. Needs root, and
# `tools.sh packages` before. COMPRESSIONS="gzip" makes fewer variants.
#
#   pause busybox         one small layer each
#   nginx                 base, nginx, site (changes and deletes files of the layer below)
#   node                  base, nodejs, application with node_modules
#   java                  base, jdk, application
#   scipy                 base, python, numpy and scipy (> 600 MB), application
#   node-modules          no image, only the layer node-modules.tar with more than 80,000 files
set -euo pipefail
. "$(dirname "$0")/env.sh"
. "$HERE/layers.sh"

# make_layer NAME: one process makes a layer, others that need it wait.
make_layer() { locked "layer-$1" "layer_$1"; }

# image NAME ENTRYPOINT LAYER...: lowest layer first. The function of the last layer makes those below it.
image() {
	local name=$1 entrypoint=$2 compression layers started
	shift 2
	make_layer "${!#}"
	layers=("${@/#/$L/}")
	for compression in ${COMPRESSIONS:-gzip zstd}; do
		[ ! -d "$CACHE/images/$name-$compression" ] || continue
		started=$(date +%s)
		ociimage layout -compression "$compression" -entrypoint "$entrypoint" -o "$CACHE/images/$name-$compression" "${layers[@]/%/.tar}" ||
			die "make image $name-$compression"
		note "image $name-$compression: $(du -sm "$CACHE/images/$name-$compression" | cut -f1) MiB in $(seconds_since "$started")"
	done
}

make_image() {
	case $1 in
	pause) image pause '["/pause"]' pause ;;
	busybox) image busybox '["/bin/sh"]' busybox ;;
	nginx) image nginx '["nginx"]' base nginx nginx-site ;;
	node) image node '["node","/app/index.js"]' base node node-app ;;
	java) image java '["java","-cp","/app","Main"]' base jdk java-app ;;
	scipy) image scipy '["python3","/app/app.py"]' base python scipy scipy-app ;;
	node-modules) make_layer node-modules ;;
	*) die "no image $1; the head of $0 lists them" ;;
	esac
}

# A cache of another generation holds other contents under the same names.
forget_others() {
	[ "$(cat "$CACHE/stamps/images" 2>/dev/null)" != "$generation" ] || return 0
	rm -rf "${CACHE:?}"/{layers,images}
	mkdir -p "$CACHE"/{layers,images}
	echo "$generation" >"$CACHE/stamps/images"
}

main() {
	if [ "${1:-}" = --one ]; then
		locked "image-$2" make_image "$2"
		return
	fi
	[ $# -gt 0 ] || set -- scipy node-modules java node nginx busybox pause
	[ "$(id -u)" = 0 ] || die "needs root for chroot and overlayfs mounts"
	locked images forget_others
	(cd "$HERE" && GOFLAGS= go build -o "$CACHE/bin/ociimage" ./ociimage) || die "build ociimage"
	# Three at a time: while one waits for the network, another unpacks.
	printf '%s\n' "$@" | xargs -n 1 -P 3 "$HERE/images.sh" --one || die "not all images could be made"
}

main "$@"
