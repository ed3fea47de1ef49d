#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs every benchmark of the folder $1 in order, and says at the end which aims were missed. A benchmark that fails makes this fail;
# a missed aim does not: machines are noisy, and who reads the table decides.
set -u
dir=${1:?usage: run.sh FOLDER-OF-PROGRAMS [NAME...]}
shift
[ $# -gt 0 ] || set -- first_write scan scan_threads sparse link pause cow_stall hot_set huge latency throughput chain sink memory
table=$(mktemp) || exit 1
trap 'rm -f "$table"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
failed=0
echo "kernel $(uname -r), $(getconf _NPROCESSORS_ONLN) CPUs, $(awk '/^MemTotal/ { printf "%.1f GiB", $2 / 1048576 }' /proc/meminfo)" \
	"of memory, $(zstd --version 2>/dev/null | sed -n 's/.*\(v[0-9][0-9.]*[0-9]\).*/zstd \1/p')"
echo "ratio: median of what was measured side by side; aims with a ratio are about the ratio"
start=$(date +%s)
for name; do
	if [ ! -x "$dir/$name" ]; then
		echo "$dir/$name: not built" >&2
		failed=1
		continue
	fi
	{ "$dir/$name"; echo "$?" >"$table.rc"; } | tee -a "$table"
	rc=$(cat "$table.rc")
	rm -f "$table.rc"
	case $rc in
	0) ;;
	77) echo "  ($name was skipped)" ;;
	*) echo "$name: exit code $rc" >&2; failed=1 ;;
	esac
done
echo
echo "$(grep -c ' yes$' "$table") aims met, $(grep -c ' NO$' "$table") missed, in $(($(date +%s) - start)) seconds"
grep ' NO$' "$table"
exit "$failed"
