#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The programs of examples/ and of the manual pages do what they say.

load common

setup()
{
	common_setup || return 1
	need_tracking
	BUILD=$(dirname "$WPSNAP")
}

teardown()
{
	common_teardown
}

# A process of another's, asleep.
sleeper()
{
	sleep 1000 3>&- &
	PIDS+=($!)
	until grep -qx sleep "/proc/$!/comm"; do sleep 0.01; done
	until_state "$!" S
}

# As `try`, of a program that leaves it to its user to try again when the target did not stop in time.
try_in_time()
{
	local i

	for ((i = 0; i < 20; i++)); do
		try "$@"
		grep -q 'did not all stop in time' err || return 0
	done
}

@test "dirty finds the pages that it wrote itself, each once" {
	try "$BUILD/examples/dirty"
	[ "$status" -eq 0 ]
	diff - out <<-END
		after the first writes:
		pages 3 to 3
		pages 10 to 11
		after the second:
		pages 60 to 60
	END
}

@test "dirty attaches to another process" {
	sleeper
	try_in_time "$BUILD/examples/dirty" "${PIDS[0]}" 0.05
	[ "$status" -eq 0 ]
	grep -Eq '^[0-9]+ KiB in [0-9]+ runs$' out
}

@test "dirty says why it can't attach" {
	try "$BUILD/examples/dirty" 999999999 0
	[ "$status" -eq 1 ]
	grep -q '^dirty: ' err
}

@test "checkpoint restores each instant with its sum, written to by a thread all the while" {
	try "$BUILD/examples/checkpoint" chain
	[ "$status" -eq 0 ]
	[ "$(grep -c '^checkpoint [0-3]: ' out)" -eq 4 ]
	[ "$(grep -c '^restored checkpoint [0-3]: the sum is 104857600$' out)" -eq 4 ]
	try "$WPSNAP" verify -q chain
	[ "$status" -eq 0 ]
}

@test "libwptrack(7): the versions of header and library agree" {
	try "$BUILD/man/libwptrack"
	[ "$status" -eq 0 ]
	grep -Eq '^compiled with ([0-9.]+), runs with \1$' out
}

@test "wpt_probe(3): the features are those of wpsnap probe" {
	try "$BUILD/man/wpt_probe"
	[ "$status" -eq 0 ]
	grep -Eq '^a?sync +yes$' out
	sort out >all
	"$WPSNAP" probe --json >json
	while read -r name state; do
		grep -q "\"$name\":$([ "$state" = yes ] && echo true || echo false)[,}]" json
	done <all
}

@test "wpt_range(3): what the owner reports is dirty" {
	try "$BUILD/man/wpt_range"
	[ "$status" -eq 0 ]
	[ "$(cat out)" = "bytes 8192 to 12288" ]
}

@test "wpt_tracker(3), wpt_writer(3), wpt_chain(3): track, take, restore" {
	sleeper
	try_in_time "$BUILD/man/wpt_tracker" "${PIDS[0]}"
	[ "$status" -eq 0 ]
	try_in_time "$BUILD/man/wpt_writer" "${PIDS[0]}" chain
	[ "$status" -eq 0 ]
	[ "$(grep -c '\.wps: ' out)" -eq 3 ]
	try "$BUILD/man/wpt_chain" chain '[stack]' stack.raw
	[ "$status" -eq 0 ]
	grep -q ' bytes, 0 pages could not be read$' out
	# an independent look: the stack of a process that sleeps
	range=$(sed -n 's/^\([0-9a-f]*-[0-9a-f]*\) .*\[stack\]$/\1/p' "/proc/${PIDS[0]}/maps")
	start=$((0x${range%-*})) end=$((0x${range#*-}))
	dd if="/proc/${PIDS[0]}/mem" of=now.raw bs=4096 skip=$((start / 4096)) count=$(((end - start) / 4096)) status=none
	cmp now.raw stack.raw
}
