# layers.sh: sourced by images.sh. layer_NAME makes $CACHE/layers/NAME.tar, and first the layers below it. Contents are Debian and npm
# packages: real software in real sizes that every Debian machine can get.
#
# Beside NAME.tar stays NAME.tree: a root directory (base), or the overlayfs upper directory of the layer, which the layers above
# are built on.
L=$CACHE/layers
# Raise it with every change after which a layer has other contents.
generation=1
install='apt-get update -qq && apt-get install -y -qq --no-install-recommends'

# finish NAME: pack NAME.tree.
finish() {
	"$CACHE/bin/ociimage" layer "$L/$1.tree" "$L/$1.tar" || die "pack layer $1"
	note "layer $1: $(($(stat -c %s "$L/$1.tar") >> 20)) MiB in $(seconds_since "$started")"
}

# fresh NAME: false if the layer is there; otherwise make room for it.
fresh() {
	[ ! -f "$L/$1.tar" ] || return 1
	started=$(date +%s)
	rm -rf "$L/$1.tree"
	mkdir -p "$L/$1.tree"
}

# over NAME "PARENT..." SCRIPT [DIR]: make a layer by running SCRIPT in a chroot over its parents (lowest first). The contents of DIR are
# copied into the root before.
over() {
	local name=$1 parents=$2 script=$3 copy=${4:-} lower= p log=$CACHE/logs/layer-$1.log
	fresh "$name" || return 0
	for p in $parents; do lower=$L/$p.tree${lower:+:$lower}; done
	rm -rf "$L/$name.work"
	mkdir -p "$L/$name.work" "$L/$name.root"
	# The mounts live in a namespace of their own: nothing is left mounted, however the build ends. With "volatile" dpkg's many fsyncs
	# cost nothing; a machine that crashes meanwhile leaves no NAME.tar.
	unshare --mount --propagation private bash -euo pipefail -c '
		root=$1 lower=$2 upper=$3 work=$4 copy=$5 script=$6
		mount -t overlay overlay -o "volatile,redirect_dir=off,metacopy=off,index=off,lowerdir=$lower,upperdir=$upper,workdir=$work" "$root"
		mount -t proc proc "$root/proc"
		mount --rbind /dev "$root/dev"
		cp /etc/resolv.conf "$root/etc/resolv.conf"
		[ -z "$copy" ] || cp -a "$copy/." "$root/"
		printf "#!/bin/sh\nexit 101\n" >"$root/usr/sbin/policy-rc.d" # starts no services in a chroot
		chmod 755 "$root/usr/sbin/policy-rc.d"
		DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$root" /bin/sh -ec "$script"
		cd "$root"
		rm -rf usr/sbin/policy-rc.d etc/resolv.conf var/lib/apt/lists/* var/cache/apt/* var/log/* tmp/*
	' over "$L/$name.root" "$lower" "$L/$name.tree" "$L/$name.work" "$copy" "$script" >"$log" 2>&1 </dev/null ||
		die "build layer $name" "$log"
	rm -rf "$L/$name.work"
	rmdir "$L/$name.root"
	finish "$name"
}

# npm_install DIR PACKAGE...: npm runs on the host, because Debian's npm package brings hundreds of others.
npm_install() {
	local dir=$1
	shift
	mkdir -p "$dir"
	(
		cd "$dir" && npm init -y && npm install --ignore-scripts --no-audit --no-fund --legacy-peer-deps --save-exact "$@"
	) >"$CACHE/logs/npm-${dir##*/}.log" 2>&1 </dev/null || die "npm install in $dir" "$CACHE/logs/npm-${dir##*/}.log"
}

layer_pause() {
	fresh pause || return 0
	gcc -Os -static -s -o "$L/pause.tree/pause" "$HERE/pause/pause.c" || die "compile pause/pause.c"
	finish pause
}

# The applets are hard links, as in the official image: tests that mask one applet must not hit the others.
layer_busybox() {
	fresh busybox || return 0
	local t=$L/busybox.tree applet
	mkdir -p "$t"/{bin,dev,etc,proc,root,sys,tmp,var}
	cp "$(command -v busybox)" "$t/bin/busybox" || die "busybox is missing: tools.sh packages"
	for applet in $("$t/bin/busybox" --list); do
		[ "$applet" = busybox ] || ln -f "$t/bin/busybox" "$t/bin/$applet"
	done
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$t/etc/passwd"
	printf 'root:x:0:\nwheel:x:10:root\nnogroup:x:65534:\n' >"$t/etc/group"
	finish busybox
}

layer_base() {
	fresh base || return 0
	local mirror
	mirror=$(debian_mirror) || die "apt knows no mirror for $(codename): run apt-get update"
	mmdebstrap --mode=root --variant=minbase --include=ca-certificates \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt=force-unsafe-io --aptopt='Acquire::Languages "none"' \
		"$(codename)" "$L/base.tree" "$mirror" >"$CACHE/logs/layer-base.log" 2>&1 </dev/null ||
		die "build layer base" "$CACHE/logs/layer-base.log"
	rm -f "$L/base.tree/etc/resolv.conf"
	finish base
}

layer_nginx() { make_layer base && over nginx base "$install nginx-light"; }
# The last layer changes one file of the layer below and deletes another: a whiteout.
layer_nginx-site() {
	make_layer nginx && over nginx-site "base nginx" '
		mkdir -p /var/www/html /var/log/nginx
		echo "<h1>ok</h1>" >/var/www/html/index.html
		rm /var/www/html/index.nginx-debian.html
		cat >/etc/nginx/nginx.conf <<-"CONF"
			daemon off;
			error_log /dev/stderr notice;
			pid /run/nginx.pid;
			events {}
			http {
				access_log off;
				server {
					listen 8081;
					root /var/www/html;
				}
			}
		CONF
		nginx -t'
}

layer_node() { make_layer base && over node base "$install nodejs"; }
layer_node-app() {
	make_layer node
	local src=$CACHE/src/node-app
	rm -rf "$src"
	npm_install "$src/app" express@4.21.2 lodash@4.17.21 moment@2.30.1 axios@1.7.9 webpack@5.97.1 typescript@5.7.2 react@18.3.1 react-dom@18.3.1
	cat >"$src/app/index.js" <<-'JS'
		const begin = Date.now();
		const express = require('express'), ts = require('typescript');
		require('lodash'); require('moment'); require('axios');
		console.log('ready node', process.version, 'typescript', ts.version, 'import_ms', Date.now() - begin);
		if (process.argv[2] === 'serve') express().get('/', (q, r) => r.send('ok')).listen(8082);
	JS
	over node-app "base node" 'node /app/index.js' "$src"
	rm -rf "$src"
}

layer_python() { make_layer base && over python base "$install python3"; }
layer_scipy() { make_layer python && over scipy "base python" "$install python3-numpy python3-scipy"; }
layer_scipy-app() {
	make_layer scipy
	local src=$CACHE/src/scipy-app
	rm -rf "$src" && mkdir -p "$src/app"
	cat >"$src/app/app.py" <<-'PY'
		import time
		begin = time.time()
		import numpy, scipy, scipy.linalg
		x = scipy.linalg.solve(numpy.array([[3.0, 1.0], [1.0, 2.0]]), numpy.array([9.0, 8.0]))
		print("ready numpy", numpy.__version__, "scipy", scipy.__version__, "x", x.tolist(), "seconds", round(time.time() - begin, 3), flush=True)
	PY
	over scipy-app "base python scipy" 'python3 -m compileall -q /app && python3 /app/app.py' "$src"
	rm -rf "$src"
}

layer_jdk() { make_layer base && over jdk base "mkdir -p /usr/share/man/man1; $install default-jdk-headless"; }
layer_java-app() {
	make_layer jdk
	local src=$CACHE/src/java-app
	rm -rf "$src" && mkdir -p "$src/app"
	cat >"$src/app/Main.java" <<-'JAVA'
		public class Main {
		    public static void main(String[] args) {
		        System.out.println("ready java " + System.getProperty("java.version"));
		    }
		}
	JAVA
	over java-app "base jdk" 'cd /app && javac Main.java && java Main' "$src"
	rm -rf "$src"
}

# One layer with more than 80,000 files, as large front-end projects have them.
layer_node-modules() {
	fresh node-modules || return 0
	npm_install "$L/node-modules.tree/app" --omit=optional \
		next@15.1.3 react@18.3.1 react-dom@18.3.1 @emotion/react@11.14.0 @emotion/styled@11.14.0 @mui/material@5.16.14 \
		@mui/icons-material@5.16.14 antd@5.22.7 lucide-react@0.469.0 @angular/core@19.0.5 @angular/material@19.0.4 @angular/cli@19.0.6 \
		storybook@8.4.7 @storybook/react@8.4.7 webpack@5.97.1 typescript@5.7.2 rxjs@7.8.1 date-fns@4.1.0 lodash@4.17.21 core-js@3.39.0 \
		mathjs@14.0.1 monaco-editor@0.52.2
	local files
	files=$(find "$L/node-modules.tree" -type f | wc -l)
	[ "$files" -gt 80000 ] || die "node-modules has $files files, want more than 80000: add packages to layer_node-modules"
	finish node-modules
	rm -rf "$L/node-modules.tree"
}
