#!/bin/bash
# SPDX-License-Identifier: MIT
# proof.sh STOCK PATCHED [BUILD]: the proof of the patch. The torture test without the library's compensation, booted on both kernels (bzImages):
# on the stock one it must fail by writes that were lost, and by nothing else; on the patched one it must pass.
# Prints TAP. WPT_SEED, WPT_STEPS as for the test; PROOF_KINDS: which of its cases (parts of their names). Needs a built tree (make tests).
set -u
cd "$(dirname "$0")/../.." || exit 1
[ $# -ge 2 ] || { echo "usage: proof.sh STOCK PATCHED [BUILD]" >&2; exit 2; }
stock=$1 patched=$2
B=$(realpath "${3:-${WPT_BUILD:-build}}")
read -ra kinds <<<"${PROOF_KINDS:-live-scan-shared-anon live-scan-memfd live-scan-hugetlb hugetlb-private file-private}"
export WPT_TORTURE_COMPENSATION=off WPT_SEED=${WPT_SEED:-20} WPT_STEPS=${WPT_STEPS:-400}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. tests/tap.sh

# Each kind's output in a file of its own, with the exit status of the test as its last line.
run() { # KERNEL DIR
	# shellcheck disable=SC2016
	scripts/vm-run -t "${PROOF_DEADLINE:-3000}" -o "$2" -s "$B" -s "$PWD" "$1" bash -c '
		test=$1
		shift
		for kind; do
			WPT_ONLY=$kind "$test" >"$VM_OUT/$kind.log" 2>&1
			echo "exit status $?" >>"$VM_OUT/$kind.log"
		done' sh "$B/tests/kernel/torture_test" "${kinds[@]}" >"$2.run" 2>&1
}

mkdir "$work/stock" "$work/patched"
run "$stock" "$work/stock"
result $? 'the stock kernel booted, ran the test and complained of nothing' '' "$work/stock.run"
run "$patched" "$work/patched"
result $? 'the patched kernel booted, ran the test and complained of nothing' '' "$work/patched.run"

for kind in "${kinds[@]}"; do
	log=$work/stock/$kind.log
	lost=$(grep -c '^# torture: WRONG BYTE' "$log")
	# What a failing case says besides: the tally. Anything else is another failure than a lost write.
	other=$(grep '^# \(torture\|fuzzy\|live scan\):' "$log" | grep -vc 'WRONG BYTE\|pages wrong$\|live scan: wrong;')
	grep -q '^exit status [1-9]' "$log" && [ "$lost" -gt 0 ] && [ "$other" = 0 ]
	result $? "stock, without compensation: $kind loses writes ($lost wrong pages shown)" '' "$log"
done
for kind in "${kinds[@]}"; do
	log=$work/patched/$kind.log
	grep -q '^exit status 0$' "$log" && grep -q '\[  PASSED  \] [1-9]' "$log" && ! grep -q 'SKIPPED' "$log" && ! grep -q WRONG "$log"
	result $? "patched, without compensation: $kind passes ($(grep -c '\[       OK \]' "$log") cases)" '' "$log"
done
tap_end
