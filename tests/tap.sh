# SPDX-License-Identifier: MIT
# TAP for the tests that are bash scripts, which source it.
tap_n=0
tap_bad=0

# result STATUS NAME [WHY [FILE]]: a test that passed if STATUS is 0; else WHY, and the end of the file that says more.
result() {
	tap_n=$((tap_n + 1))
	if [ "$1" = 0 ]; then
		echo "ok $tap_n - $2"
		return
	fi
	tap_bad=1
	[ ! -f "${4:-}" ] || tail -40 "$4" | sed 's/^/# /'
	echo "not ok $tap_n - $2${3:+: $3}"
}

# The plan, and the status to exit with.
tap_end() {
	echo "1..$tap_n"
	return $tap_bad
}
