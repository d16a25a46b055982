#!/bin/bash
# images.sh [NAME...]: make the images that tests, demo and benchmarks pull, as OCI layouts images/NAME-FORM below
# ${EROFS_LAB_CACHE:-~/.cache/erofs-snapshotter}; their layers stay as layers/*.tar. What is there already is kept. Needs root, and
# `tools.sh packages` before. COMPRESSIONS="gzip" makes fewer variants. The forms are
#
#   gzip zstd             of all images
#   estargz zstdchunked-stargz zstdchunked
#                         with an index for loading on demand, of busybox, nginx, node and scipy: the last one is podman's zstd:chunked,
#                         made by skopeo, which `tools.sh skopeo` installs; the second one that of nerdctl and ctr-remote
#   estargz-prefetch      of busybox and nginx: eStargz with a landmark, up to which the files are that the container needs first
#
# and the images
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

# image NAME "FORM..." ENTRYPOINT LAYER...: lowest layer first. The function of the last layer makes those below it.
image() {
	local name=$1 forms=$2 entrypoint=$3 form layers
	shift 3
	make_layer "${!#}"
	layers=("${@/#/$L/}")
	for form in $forms; do
		case " ${COMPRESSIONS:-$forms} " in *" $form "*) ;; *) continue ;; esac
		[ -d "$CACHE/images/$name-$form" ] || make_form "$name" "$form" "$entrypoint" "${layers[@]/%/.tar}"
	done
}

# make_form NAME FORM ENTRYPOINT LAYER.tar...
make_form() {
	local out=$CACHE/images/$1-$2 started
	started=$(date +%s)
	case $2 in
	zstdchunked) podman_layout "$out" "$3" "${@:4}" ;;
	*-prefetch) ociimage layout -compression "${2%-prefetch}" -first "${first[$1]}" -entrypoint "$3" -o "$out" "${@:4}" ;;
	*) ociimage layout -compression "$2" -entrypoint "$3" -o "$out" "${@:4}" ;;
	esac || die "make image $1-$2"
	note "image $1-$2: $(du -sm "$out" | cut -f1) MiB in $(seconds_since "$started")"
}

# podman_layout OUT ENTRYPOINT LAYER.tar...: skopeo compresses the layers of an image that is not compressed. Level 3 of zstd takes a third
# of the time of the default.
podman_layout() {
	local out=$1 plain=$1.plain
	"$HERE/tools.sh" skopeo &&
		ociimage layout -compression none -entrypoint "$2" -o "$plain" "${@:3}" && rm -rf "$out.part" &&
		skopeo --insecure-policy copy --quiet --dest-compress-format zstd:chunked --dest-compress-level 3 "oci:$plain" "oci:$out.part" &&
		rm -rf "$plain" && mv "$out.part" "$out"
}

eager="gzip zstd"
lazy="estargz zstdchunked-stargz zstdchunked"

# What a container needs first, of images that say so.
declare -A first=([busybox]=bin/busybox [nginx]=usr/sbin/nginx,etc/nginx/nginx.conf,etc/passwd,etc/group,var/www/html/index.html)

make_image() {
	case $1 in
	pause) image pause "$eager" '["/pause"]' pause ;;
	busybox) image busybox "$eager $lazy estargz-prefetch" '["/bin/sh"]' busybox ;;
	nginx) image nginx "$eager $lazy estargz-prefetch" '["nginx"]' base nginx nginx-site ;;
	node) image node "$eager $lazy" '["node","/app/index.js"]' base node node-app ;;
	java) image java "$eager" '["java","-cp","/app","Main"]' base jdk java-app ;;
	scipy) image scipy "$eager $lazy" '["python3","/app/app.py"]' base python scipy scipy-app ;;
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
