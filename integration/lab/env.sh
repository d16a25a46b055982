# env.sh: sourced by the scripts beside it. Says where tools, layers and images are cached, and how a Debian machine is asked for
# its mirror. Everything is written below $CACHE, apart from the Debian packages that `tools.sh packages` installs.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${EROFS_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/erofs-snapshotter}
export PATH=$CACHE/bin:$PATH
mkdir -p "$CACHE"/{bin,stamps,logs,locks,layers,images,src}

note() { echo "[$(date +%T)] ${0##*/}: $*" >&2; }

# die MESSAGE [LOGFILE]: end with a message and the last lines of the log that explains it.
die() {
	note "$1"
	[ $# -lt 2 ] || { echo "--- $2" >&2; tail -n 15 "$2" >&2; }
	exit 1
}

# locked NAME COMMAND...: run COMMAND while holding the lock NAME, so that scripts running at the same time share work instead of
# doing it twice. COMMAND must look first whether the work is still to be done.
locked() {
	local name=$1
	shift
	(
		flock 9
		"$@"
	) 9>"$CACHE/locks/$name"
}

seconds_since() { echo "$(($(date +%s) - $1)) s"; }

codename() { (. /etc/os-release && echo "$VERSION_CODENAME"); }

# debian_mirror: the address of the mirror that this machine's apt uses for its own release. apt knows it when its lists are there.
debian_mirror() {
	apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' |
		awk -v r="$(codename)" '$2 == r && !site { site = $1; print site } END { exit !site }'
}

# private_apt SUITE TYPE SUBCOMMAND...: apt-get that sees nothing but SUITE (TYPE is deb or deb-src), with lists of its own. It can
# download packages of another Debian release; the machine's apt does not notice.
private_apt() { locked "apt-$1-$2" private_apt_get "$@"; }
private_apt_get() {
	local suite=$1 type=$2 d=$CACHE/apt/$1-$2
	shift 2
	mkdir -p "$d/lists/partial" "$d/archives/partial"
	local options=(-o "Dir::Etc::sourcelist=$d/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$d/lists"
		-o "Dir::Cache::archives=$d/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root
		-o Acquire::Languages=none)
	if [ "${1:-}" = update ]; then
		local mirror
		mirror=$(debian_mirror) || { echo "apt knows no mirror for $(codename)"; return 1; }
		echo "$type [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$d/sources.list"
	fi
	apt-get "${options[@]}" "$@"
}
