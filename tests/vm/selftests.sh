#!/bin/bash
# SPDX-License-Identifier: MIT
# selftests.sh FOLDER [TEST]...: runs the kernel's own selftests of that folder (all, or these) and prints "test: result: name" for each case and
# each program's exit status; what they print themselves goes to $VM_OUT. Names lose what differs from run to run, and a repeated one gets a number.
set -u
folder=$1
shift
out=${VM_OUT:-/tmp}/selftests
mkdir -p "$out"
cd "$(mktemp -d)" || exit 1
limit=${WPT_SELFTEST_TIMEOUT:-400}

# TAP, "Testing x... done" (uffd-unit-tests) and "step... OK" below "Run test: x" (khugepaged)
normalise() {
	sed -e 's/\x1b\[[0-9;]*m//g' -e 's/\r$//' -e 's/.*\r//' "$2" | awk -v test="$1" '
	function row(result, name) {
		gsub(/0x[0-9a-f]+/, "0x", name)
		sub(/transact_test count [0-9]+/, "transact_test count", name)
		sub(/Extra pages [0-9]+.*/, "Extra pages", name)
		gsub(/[ \t]+/, " ", name)
		sub(/^ /, "", name); sub(/ $/, "", name)
		n = ++seen[name]
		print test ": " result ": " name (n > 1 ? " #" n : "")
	}
	/^Bail out/ { row("bail", $0) }
	/^(not )?ok [0-9]+/ {
		result = /^not/ ? "FAIL" : toupper($0) ~ /# *SKIP/ ? "skip" : "pass"
		sub(/^(not )?ok [0-9]+ *-? */, "")
		if ($0 !~ /^# *[Ss][Kk][Ii][Pp]/) sub(/ *# *[Ss][Kk][Ii][Pp].*/, "")
		row(result, $0)
	}
	match($0, /\.\.\. (done|skipped|failed)/) && sub(/^Testing /, "") {
		result = /\.\.\. done/ ? "pass" : /\.\.\. skipped/ ? "skip" : "FAIL"
		sub(/\.\.\. (done|skipped|failed).*/, "")
		row(result, $0)
	}
	/^Run test: / { sub(/^Run test: /, ""); under = $0; next }
	under != "" && match($0, /\.\.\.+ *(OK|Fail.*|Timeout|Skip.*|[A-Za-z].*)$/) {
		step = substr($0, 1, RSTART - 1)
		result = substr($0, RSTART)
		gsub(/^[. ]+/, "", result)
		row(result == "OK" ? "pass" : result ~ /^[Ss]kip/ ? "skip" : "FAIL", under ": " step)
	}'
}

# run NAME PROGRAM ARG...
run() {
	local name=$1 rc start=$SECONDS
	shift
	[ ${#only[@]} = 0 ] || [[ " ${only[*]} " == *" $1 "* ]] || return 0
	[ -x "$folder/$1" ] || { echo "$name: missing: program"; return 0; }
	(exec timeout -k 5 "$limit" "$folder/$1" "${@:2}" >"$out/$name" 2>&1 </dev/null)
	rc=$?
	normalise "$name" "$out/$name"
	echo "$name: $([ $rc = 0 ] && echo pass || echo "exit $rc"): exit status"
	echo "# $name took $((SECONDS - start)) s"
}

only=("$@")
known='pagemap_ioctl uffd-unit-tests uffd-stress khugepaged soft-dirty mremap_test mremap_dontunmap ksm_functional_tests madv_populate mkdirty'
run pagemap_ioctl pagemap_ioctl
run uffd-unit-tests uffd-unit-tests
run uffd-stress-anon uffd-stress anon 20 8
run uffd-stress-shmem uffd-stress shmem 20 8
run uffd-stress-shmem-private uffd-stress shmem-private 20 8
run uffd-stress-hugetlb uffd-stress hugetlb 64 8
run uffd-stress-hugetlb-private uffd-stress hugetlb-private 64 8
run soft-dirty soft-dirty
run mremap_test mremap_test
run mremap_dontunmap mremap_dontunmap
run ksm_functional_tests ksm_functional_tests
run madv_populate madv_populate
run mkdirty mkdirty
run khugepaged khugepaged
run khugepaged-shmem khugepaged all:shmem
# Those that the patches add
for t in "$folder"/*; do
	[ -f "$t" ] || continue
	t=${t##*/}
	[[ " $known " == *" $t "* ]] || run "$t" "$t"
done
