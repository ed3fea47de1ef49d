#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap qemu: snapshots of a guest that proves itself (guest.bats), and what is left of it when something dies midway.

load common

setup_file() { guest_build; }
setup()
{
	qemu_setup
	need_tracking
}
teardown() { qemu_teardown; }

@test "save and restore of a guest that runs" {
	local before after

	vm_boot orig 10
	note_settings orig
	before=$(size_of orig)
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps
	after=$(size_of orig)
	exits 0
	grep -qE '^link 0 save: [0-9]+ pages dirty, .*, guest stopped [0-9.]+ [mu]?s, device state [0-9.]+ [KM]iB(, s\.wps)?$' out
	unharmed orig
	"$WPSNAP" verify s.wps
	# Saved again by comparing
	try "$WPSNAP" qemu save orig/qmp.sock -o t.wps --parent s.wps
	exits 0
	unharmed orig
	vm_kill orig
	vm_restore copy s.wps
	vm_says copy 60
	vm_kill copy
	console_goes_on orig "$before" "$after" copy 30
	cat s.wps t.wps >chain.wps
	vm_restore later chain.wps
	vm_says later 60
	vm_kill later
	console_goes_on orig "$after" "$(size_of orig)" later 30
}

@test "the restore ends with QEMU, and its exit code is QEMU's" {
	vm_grown orig 5
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps
	vm_kill orig
	vm_restore copy s.wps
	vm_says copy 10
	vm_qmp copy quit
	WATCH=$RESTORE
	ended
	[ "$status" -eq 0 ]
	vm_restore again s.wps
	vm_kill again
	WATCH=$RESTORE
	ended
	[ "$status" -ne 0 ]
}

@test "a guest that is paused stays paused, and so does what is restored" {
	local before

	vm_grown orig 10
	note_settings orig
	vm_qmp orig stop
	before=$(size_of orig)
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps
	exits 0
	vm_qmp orig query-status | grep -q '"running": false'
	[ "$(size_of orig)" = "$before" ]
	"$WPSNAP" restore -q s.wps -o raw
	cmp raw "$RAMS/orig.ram"
	vm_restore copy s.wps
	vm_qmp copy query-status | grep -q '"running": false'
	[ "$(size_of copy)" = 0 ]
	vm_qmp copy cont
	vm_says copy 40
	vm_kill copy
	console_goes_on orig "$before" "$before" copy
	# One that ran, restored with --paused
	vm_qmp orig cont
	unharmed orig
	before=$(size_of orig)
	"$WPSNAP" qemu save -q orig/qmp.sock -o running.wps
	vm_runs_on orig
	vm_kill orig
	vm_restore still running.wps --paused
	vm_qmp still query-status | grep -q '"running": false'
	[ "$(size_of still)" = 0 ]
	vm_qmp still cont
	vm_says still 20
	console_goes_on orig "$before" "$(size_of orig)" still
}

@test "a watch of 20 links, QEMU is killed, and each point goes on from its own count" {
	local n before=0

	vm_grown orig 10
	note_settings orig
	qemu_watch --every 300ms
	links 20
	unharmed orig
	vm_kill orig
	watch_wait
	exits 5
	"$WPSNAP" verify dir
	for n in 0 7 20 -1; do
		vm_restore "copy$n" "dir@$n"
		vm_says "copy$n" 20
		vm_kill "copy$n"
		if [ "$n" -gt 0 ]; then
			console_goes_on orig "${AFTER[n - 1]}" "${AFTER[n]}" "copy$n"
		elif [ "$n" = 0 ]; then
			console_goes_on orig "$BEFORE" "${AFTER[0]}" "copy$n"
		else
			console_goes_on orig "${AFTER[20]}" "$(size_of orig)" "copy$n"
		fi
		((X > before || n == -1))
		before=$X
	done
}

@test "a watch goes on where another ended, and ends by a signal" {
	vm_grown orig 5
	note_settings orig
	qemu_watch --every 200ms
	links 3
	watch_end
	exits 0
	unharmed orig
	AFTER=()
	watch_start qemu watch orig/qmp.sock -o dir --every 200ms --count 3
	watch_wait
	exits 0
	unharmed orig
	vm_kill orig
	"$WPSNAP" verify dir
	vm_restore copy dir
	vm_says copy 20
	vm_kill copy
	console_goes_on orig 0 "$(size_of orig)" copy
}

@test "two machines in one watch: each has a chain of its own, and one goes on when the other has ended" {
	local n

	vm_grown one 5
	vm_grown two 10
	watch_start qemu watch one/qmp.sock two/qmp.sock -o dir --every 200ms
	until_true more_links_than dir/one 2
	until_true more_links_than dir/two 2
	vm_kill one
	n=$(find dir/two -name '*.wps' | wc -l)
	until_true more_links_than dir/two "$((n + 2))"
	watch_end
	exits 5
	vm_running two
	vm_runs_on two
	vm_kill two
	for n in one two; do
		"$WPSNAP" verify "dir/$n"
		vm_restore "$n-copy" "dir/$n"
		vm_says "$n-copy" 20
		vm_kill "$n-copy"
		console_goes_on $n 0 "$(size_of $n)" "$n-copy"
	done
}

# Of a folder of a machine the oldest link's number
oldest()
{
	find "$1" -name '*.wps' -printf '%f\n' | sort | head -1 | sed 's/-.*//; s/^0*//; s/^$/0/'
}

is_pruned()
{
	[ "$(oldest "$1")" -gt 5 ]
}

@test "--keep with two machines: each chain is kept to its last links, and each of them goes on" {
	local n at

	vm_grown one 5
	vm_grown two 5
	watch_start qemu watch one/qmp.sock two/qmp.sock -o dir --every 200ms --keep 2
	until_true is_pruned dir/one
	until_true is_pruned dir/two
	watch_end
	exits 0
	for n in one two; do
		vm_running $n
		vm_runs_on $n
		vm_kill $n
		"$WPSNAP" verify "dir/$n"
		[ "$(find "dir/$n" -name '*.wps' | wc -l)" -le 10 ]
		for at in "$(oldest "dir/$n")" -2 -1; do
			vm_restore "$n-copy$at" "dir/$n@$at"
			vm_says "$n-copy$at" 20
			vm_kill "$n-copy$at"
			console_goes_on $n 0 "$(size_of $n)" "$n-copy$at"
		done
	done
	grep -qE '^one: prune: 2 links kept, from [0-9]+ on, ' out
}

@test "wpsnap is killed at any moment: the guest runs on, is set as before, and the chain is good" {
	local i

	: "${WPT_SEED:=$RANDOM}"
	echo "# WPT_SEED=$WPT_SEED" >&3
	RANDOM=$WPT_SEED
	vm_grown orig 5
	note_settings orig
	for ((i = 0; i < ${WPT_KILLS:-10}; i++)); do
		watch_start qemu watch orig/qmp.sock -o dir --every 20ms
		# Half of them from the start on, the others from its first link on
		if ((i % 2)); then
			watch_line
			watch_line
		fi
		sleep "0.$(printf '%03d' $((RANDOM % 700)))"
		kill -KILL "$WATCH"
		ended
		exec 7<&-
		echo "killed the watch for the ${i}th time, it said: $(cat watch.err)"
		unharmed orig
		chain_is_good dir
	done
	# And what it left can be continued and restored.
	watch_start qemu watch orig/qmp.sock -o dir --every 20ms --count 3
	watch_wait
	exits 0
	unharmed orig
	until_true guards 0
	vm_kill orig
	vm_restore copy dir
	vm_says copy 20
	vm_kill copy
	console_goes_on orig 0 "$(size_of orig)" copy
}

@test "QEMU is killed midway: code 5, and the chain is good" {
	local i

	for i in 1 2 3; do
		vm_grown orig 3
		qemu_watch --every 20ms
		links "$i"
		vm_kill orig
		watch_wait
		exits 5
		"$WPSNAP" verify dir
		rm -rf dir orig
	done
}

@test "memory that is not shared is refused, with how to start QEMU" {
	RAM=private
	vm_boot orig 3
	note_settings orig
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps
	[ "$status" -ne 0 ]
	[ "$status" -lt 100 ]
	messages_are_ours
	says share=on
	[ ! -e s.wps ]
	unharmed orig
}

@test "memory-backend-memfd, memory-backend-ram and two backends" {
	local before after kind

	for kind in memfd ram two; do
		RAM=$kind
		SIZE=128
		vm_boot orig 5
		note_settings orig
		before=$(size_of orig)
		try "$WPSNAP" qemu save orig/qmp.sock -o "$kind.wps"
		after=$(size_of orig)
		exits 0
		unharmed orig
		vm_kill orig
		vm_restore "$kind" "$kind.wps"
		vm_says "$kind" 40
		vm_kill "$kind"
		console_goes_on orig "$before" "$after" "$kind"
		rm -rf orig
	done
}

@test "another VM than the one that was saved is refused: size, backend's name, machine" {
	local id

	vm_grown orig 3
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps
	vm_kill orig
	vm_args size
	ARGS=("${ARGS[@]//size=96M/size=112M}")
	ARGS=("${ARGS[@]/#96M/112M}")
	try "$WPSNAP" qemu restore s.wps -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says 'wpsnap: '
	vm_args name
	ARGS=("${ARGS[@]//id=ram/id=other}")
	ARGS=("${ARGS[@]//backend=ram/backend=other}")
	try "$WPSNAP" qemu restore s.wps -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says 'wpsnap: '
	vm_args machine
	ARGS=("${ARGS[@]//q35/pc}")
	try "$WPSNAP" qemu restore s.wps -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says 'wpsnap: '
	for id in size name machine; do
		! vm_pid "$id" || { echo "a QEMU was left behind"; return 1; }
		[ ! -s "$id/console" ]
	done
}

@test "a full disk: code 1, and the guest runs on" {
	local links

	need_root
	mkdir small
	mount -t tmpfs -o size=2M tmpfs small || skip "cannot mount a tmpfs"
	MOUNTED=$T/small
	vm_grown orig 5
	note_settings orig
	try "$WPSNAP" qemu save orig/qmp.sock -o small/s.wps
	exits 1
	says 'No space left'
	messages_are_ours
	[ ! -e small/s.wps ]
	unharmed orig
	# A watch goes on when there is room again.
	umount small
	mount -t tmpfs -o size=256M tmpfs small
	watch_start qemu watch orig/qmp.sock -o small/dir --every 50ms
	until_true more_links_than small/dir 2
	dd if=/dev/zero of=small/filler bs=64K 2>/dev/null || :
	until_true grep -q 'No space left' watch.err
	unharmed orig
	"$WPSNAP" verify small/dir
	rm small/filler
	links=$(find small/dir -name '*.wps' | wc -l)
	until_true more_links_than small/dir "$links"
	watch_end
	exits 0
	unharmed orig
	vm_kill orig
	"$WPSNAP" verify small/dir
	vm_restore copy small/dir
	vm_says copy 20
	vm_kill copy
	console_goes_on orig 0 "$(size_of orig)" copy
}

@test "the monitor's connection breaks at the migration: the guest runs on" {
	local when

	for when in before after; do
		vm_grown orig 3
		note_settings orig
		relay_start '"migrate"' $when
		try "$WPSNAP" qemu save orig/relay.sock -o "$when.wps" --pid "$(vm_pid orig)"
		echo "it ended with $status and said: $(cat err relay.err)"
		grep -qx dropped relay.out
		[ "$status" -lt 100 ]
		unharmed orig
		if [ "$status" = 0 ]; then
			"$WPSNAP" verify "$when.wps"
		else
			[ ! -e "$when.wps" ]
		fi
		# And the next one, over a connection that lasts
		try "$WPSNAP" qemu save orig/relay.sock -o "$when-next.wps" --pid "$(vm_pid orig)"
		exits 0
		unharmed orig
		kill -KILL "$RELAY"
		vm_kill orig
		vm_restore "$when" "$when-next.wps"
		vm_says "$when" 20
		vm_kill "$when"
		console_goes_on orig 0 "$(size_of orig)" "$when"
		rm -rf orig
	done
}
