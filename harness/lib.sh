# SPDX-License-Identifier: GPL-2.0
# Common ground of the tools: sourced, never run.
# Sets $top (the repository) and $out (everything generated, out/).
# shellcheck shell=bash
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$top/out
export LC_ALL=C.UTF-8
# dependencies are what the compiler says: a miss is not preprocessed first, which
# takes a fifth of a cold build
export CCACHE_DEPEND=1
mkdir -p "$out"

# say TEXT...: one line of progress, on stderr so that stdout stays the result
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die TEXT...: one line that names what was tried and what to do
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# base_fact KEY: one fact of patches/base
base_fact() {
	sed -n "s/^$1:[[:space:]]*//p" "$top/patches/base" | head -n 1
}

# need PACKAGE...: the Debian packages a tool calls for; installed when root
need() {
	local p missing=()
	for p; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] ||
		die "missing Debian packages: ${missing[*]}; run: apt-get install ${missing[*]}"
	say "installing ${missing[*]}"
	local log=$out/apt-install.log
	export DEBIAN_FRONTEND=noninteractive
	(
	# one tool at a time: "apt-get update" waits for nobody
	exec 8>"$out/apt.lock"
	flock 8
	if ! apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
		apt-get update >>"$log" 2>&1 || true
		apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1 ||
			die "apt-get install ${missing[*]} failed, see ${log#"$top"/}; install them by hand"
	fi
	) || exit
}

# jobs_max: how many compilers at once, one of which waits for the disk; JOBS=n
# overrides
jobs_max() { echo "${JOBS:-$(($(nproc) + 1))}"; }

# git_env: git as if nobody had ever configured it
git_env() {
	export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0
	unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
}

# as_nobody COMMAND...: commits whose author means nothing, the same every time
as_nobody() {
	local d='2026-01-01 00:00:00 +0000'
	GIT_AUTHOR_NAME=compose GIT_AUTHOR_EMAIL='' GIT_AUTHOR_DATE=$d \
	GIT_COMMITTER_NAME=compose GIT_COMMITTER_EMAIL='' GIT_COMMITTER_DATE=$d "$@"
}

# need_kernel: what it takes to compile a kernel
need_kernel() { need gcc make flex bison bc libelf-dev libssl-dev ccache python3 perl kmod xz-utils cpio; }

# need_selftests: and the mm selftests and their disk
need_selftests() { need gcc make rsync libc6-dev libnuma-dev libcap-dev liburing-dev e2fsprogs; }

# kmake SOURCE BUILD-DIR ARGUMENT...: the kernel's make, the same result every time
kmake() {
	local src=$1 build=$2
	shift 2
	nice -n 5 make -C "$src" O="$build" CC="ccache gcc" HOSTCC="ccache gcc" \
		KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 2026' KBUILD_BUILD_VERSION=1 \
		KBUILD_BUILD_USER=compose KBUILD_BUILD_HOST=harness LOCALVERSION= \
		-j"$(jobs_max)" "$@"
}

# gcov_args SOURCE: what make is told so that the files of the series count what is run
# of them, by the functions and conditions of the source: what gcc else does before
# it sets counters is to inline functions, each copy then with its own, and to make
# one condition of several, or two or none of one
gcov_args() {
	local f
	# the tests as well: they have copies of what the header has
	for f in "$1"/mm/{,tests/}cow_context*.c; do
		f=${f#"$1"/mm/}
		printf 'CFLAGS_%s=%s\n' "${f%.c}.o" "--coverage -fprofile-update=prefer-atomic \
-fno-tree-loop-im -fno-early-inlining -fno-ssa-phiopt -fno-thread-jumps --param=logical-op-non-short-circuit=0"
	done
}

# kcsan_args SOURCE: what make is told so that KCSAN looks at the files that the series
# writes or edits only: of all accesses it watches one in some hundred.  Locks, RCU and
# trees keep their barriers, or what happens under a lock would seem to leave it.
kcsan_args() {
	local files
	files=$(git -C "$1" diff --name-only cowctx-base HEAD -- '*.c' ':!tools' ':!mm/tests' | sed 's/c$/o/' | paste -sd ' ')
	# for make to expand, at each file
	# shellcheck disable=SC2016
	printf '%s=$(if $(filter %s,%s),y,n)\n' \
		KCSAN_SANITIZE "$files" '$(obj)/$(target-stem).o' \
		KCSAN_INSTRUMENT_BARRIERS 'mm kernel kernel/locking kernel/rcu kernel/sched lib/maple_tree.o lib/refcount.o lib/xarray.o' \
			'$(obj) $(obj)/$(target-stem).o'
}

# fuzz_seed: a random one for harness/fuzz, odd: --system in both halves
fuzz_seed() { echo "$((RANDOM << 16 | RANDOM << 1 | 1))"; }

# splats LOG: the lines that harness/splats does not allow in a kernel's log
splats() {
	# said where all who ask look
	grep -qv -e '^#' -e '^$' "$top/harness/splats" || { echo "harness/splats holds no pattern; nothing could be found"; return; }
	grep -nE -f <(grep -v -e '^#' -e '^$' "$top/harness/splats") "$1" || :
}

# unpatched_src: a worktree of out/linux at the base commit; prints its path
unpatched_src() {
	local src=$out/unpatched-src
	# out/linux can be another since
	if ! git -C "$src" rev-parse -q --verify HEAD >/dev/null 2>&1; then
		say "worktree ${src#"$top"/}"
		rm -rf "$src"
		git -C "$out/linux" worktree prune &&
			git -C "$out/linux" worktree add -q --detach "$src" cowctx-base || return
	fi
	git -C "$src" checkout -q -f --detach cowctx-base || return
	echo "$src"
}

# debian_mirror: the URI of the Debian archive this machine installs from
debian_mirror() {
	[ -z "${MIRROR:-}" ] || { echo "$MIRROR"; return; }
	# shellcheck disable=SC2016
	apt-get indextargets --no-release-info --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		awk '/\/debian\/?$/ && !n++ { print } END { exit !n }'
}
