#!/bin/bash
# SPDX-License-Identifier: MIT
# figures.sh BUILD: boots the stock and the patched kernel in turn and prints what the patch saves and what it costs, side by side. make figures
# calls it, with the programs of tests/bench built. FIGURES_ROUNDS: how often each is booted for the hot path (3).
# The machine is emulated: absolute times are of no use, ratios are.
set -u
cd "$(dirname "$0")/../.." || exit 1
B=$(realpath "${1:?usage: figures.sh BUILD}") || exit 2
kernels=$(scripts/kernel-build stock patched) || exit 1
image() { awk -v name="$1" '$1 == name { sub(/^[^ ]* /, ""); print $0 "/bzImage" }' <<<"$kernels"; }
stock=$(image stock)
patched=$(image patched)
rounds=${FIGURES_ROUNDS:-3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() { # KERNEL OUTPUT PROGRAM
	if ! scripts/vm-run -t 1200 -s "$B" -s "$PWD" "$1" "$B/tests/bench/$3" >"$2" 2>&1; then
		cat "$2"
		echo "figures.sh: $3 failed on $1" >&2
		exit 1
	fi
}

for round in $(seq "$rounds"); do
	run "$stock" "$work/hot.stock.$round" hot_path
	run "$patched" "$work/hot.patched.$round" hot_path
done
export WPT_REPEATS=1
run "$stock" "$work/sparse.stock" sparse_written
WPT_REPEATS=5 run "$patched" "$work/sparse.patched" sparse_written

echo "Protecting 1 TiB of which 1000 pages were touched: milliseconds, and KiB of page tables that were added"
echo
grep -h '^figure sparse' "$work/sparse.stock" | sed 's/^figure/stock/' >"$work/sparse"
grep -h '^figure sparse' "$work/sparse.patched" | sed 's/^figure/patched/' >>"$work/sparse"
awk '
	BEGIN { printf "%-8s %-6s %-22s %12s %12s %14s\n", "kernel", "memory", "way", "ms", "KiB", "KiB / stock" }
	$1 == "stock" && $4 == "writeprotect-stock" { base[$3] = $6 }
	{ printf "%-8s %-6s %-22s %12.1f %12d %14.6f\n", $1, $3, $4, $5, $6, $6 / base[$3] }
' "$work/sparse"

echo
echo "Page faults, nanoseconds a page. Ratios of the medians of $rounds rounds in turn (of the least values in brackets):"
echo "A: patched to stock, feature not asked for. B: on the patched kernel, with WP_WRITTEN to without."
echo
for kernel in stock patched; do
	grep -h '^figure hot' "$work"/hot.$kernel.* | sed "s/^figure/$kernel/"
done | awk '
	function median(key, i, j, n, t, v) {
		n = count[key]
		for (i = 1; i <= n; i++)
			v[i] = value[key, i]
		for (i = 2; i <= n; i++)
			for (j = i; j > 1 && v[j - 1] > v[j]; j--) {
				t = v[j]; v[j] = v[j - 1]; v[j - 1] = t
			}
		return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
	}
	{
		key = $1 " " $3 " " $4 " " $5
		value[key, ++count[key]] = $6
		if (!(key in least) || $7 < least[key])
			least[key] = $7
		what = $3 " " $4
		if (!(what in seen)) {
			seen[what] = 1
			order[++nr] = what
		}
	}
	function ratio(a, b) {
		return a in count && b in count ? sprintf("%.2f (%.2f)", median(a) / median(b), least[a] / least[b]) : "-"
	}
	function figure(a) {
		return a in count ? sprintf("%.0f", median(a)) : "-"
	}
	END {
		printf "%-24s %10s %10s %10s %10s %10s  %-14s %-14s %s\n", "", "stock", "stock", "patched", "patched", "patched",
			"A, untracked", "A, async", "B"
		printf "%-24s %10s %10s %10s %10s %10s\n", "", "untracked", "async", "untracked", "async", "written"
		for (i = 1; i <= nr; i++) {
			w = order[i]
			printf "%-24s %10s %10s %10s %10s %10s  %-14s %-14s %s\n", w,
				figure("stock " w " untracked"), figure("stock " w " async"), figure("patched " w " untracked"),
				figure("patched " w " async"), figure("patched " w " written"),
				ratio("patched " w " untracked", "stock " w " untracked"), ratio("patched " w " async", "stock " w " async"),
				ratio("patched " w " written", "patched " w " async")
		}
	}
'
