#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# What goes wrong, with which message and exit code, and what is left behind: nothing.

load common

setup() { common_setup; }
teardown() { common_teardown; }

nothing_left()
{
	[ -z "$(ls -A "$1")" ] || { ls -A "$1"; return 1; }
}

small_tmpfs()
{
	need_root
	mkdir -p small
	mount -t tmpfs -o "size=$1" none small 2>/dev/null || skip "needs to mount a tmpfs"
	MOUNTED=$T/small
}

@test "a process that does not exist: code 5" {
	for c in save watch; do
		try "$WPSNAP" $c 4194304 -o out.wps
		exits 5
		says 'cannot attach to process 4194304: No such process'
		messages_are_ours
		[ ! -e out.wps ]
	done
}

@test "where the kernel can't track, what it lacks is said, and nothing is left" {
	"$WPSNAP" probe >/dev/null 2>&1 && skip "processes can be tracked here"
	"$WPSNAP" probe | grep -q '^  yes  uffd ' || skip "needs a userfaultfd for this user"
	sleep 1000 &
	PIDS+=($!)
	for c in save watch; do
		try "$WPSNAP" $c $! -o links
		exits 1
		says 'this kernel lacks '
		says 'Linux has it since 6.7'
		says '`wpsnap probe` says what is missing'
		messages_are_ours
		[ ! -e links ]
	done
	try "$WPSNAP" run -o links -- touch ran
	exits 1
	says "processes can't be tracked here"
	[ ! -e ran ]
	[ ! -e links ]
}

@test "a zombie: code 5" {
	target_start 16 16
	tell zombie
	try "$WPSNAP" save "$(cat zombie.pid)" -o f
	exits 5
	says zombie
}

@test "a kernel thread: code 1" {
	[ -e /proc/2/status ] && [ ! -s /proc/2/cmdline ] && grep -q kthreadd /proc/2/comm || skip "kernel threads are not visible here"
	try "$WPSNAP" save 2 -o f
	exits 1
	says 'kernel thread'
	messages_are_ours
}

@test "its own pid, and a thread's: code 2" {
	try sh -c 'exec "$0" save $$ -o f' "$WPSNAP"
	exits 2
	says 'wpsnap itself'
	# One that has not ended meanwhile.
	for ((i = 0; i < 20; i++)); do
		tid=
		for task in /proc/[0-9]*/task/[0-9]*; do
			[ "${task##*/}" = "$(echo "$task" | cut -d/ -f3)" ] || { tid=${task##*/}; pid=$(echo "$task" | cut -d/ -f3); break; }
		done
		[ -n "$tid" ] || skip "no process with threads to look at"
		try "$WPSNAP" save "$tid" -o f
		[ ! -e "/proc/$pid/task/$tid" ] || break
	done
	exits 2
	says "is a thread of process $pid"
}

@test "no permission: code 1, and what to do" {
	need_tracking
	need_root
	command -v setpriv >/dev/null || skip "needs setpriv"
	target_start 16 16
	chmod 777 .
	cp "$WPSNAP" wpsnap
	mkdir -m 777 drop
	try setpriv --reuid=65534 --regid=65534 --clear-groups ./wpsnap save "$TARGET" -o drop/s.wps
	exits 1
	says 'run wpsnap as root or as the target'
	messages_are_ours
	nothing_left drop
}

@test "an unprivileged user saves his own process" {
	need_tracking
	need_root
	command -v setpriv >/dev/null || skip "needs setpriv"
	nobody='setpriv --reuid=65534 --regid=65534 --clear-groups'
	chmod 777 .
	cp "$WPSNAP" wpsnap
	cp "$HELPERS/target_mem" .
	mkdir -m 777 drop
	$nobody ./wpsnap probe >/dev/null 2>&1 || skip "needs unprivileged userfaultfd, and a temporary folder that nobody can read"
	mkfifo to from
	$nobody ./target_mem 64 16 <to >from &
	TARGET=$!
	PIDS+=("$TARGET")
	exec 8>to 9<from
	target_answers
	tell fill 3
	try $nobody ./wpsnap save "$TARGET" -o drop/s.wps
	exits 0
	cp drop/s.wps .
	"$WPSNAP" verify s.wps
	"$WPSNAP" restore -q s.wps -o raw --range "$(range $ANON 0 64)"
	dump "$(range $ANON 0 64)" dumped
	cmp raw dumped
}

@test "the folder does not exist, or can't be written to" {
	need_tracking
	target_start 16 16
	try "$WPSNAP" save "$TARGET" -o no/such/s.wps
	exits 1
	says 'No such file or directory; create the folder'
	try "$WPSNAP" watch "$TARGET" -o /proc/nothing --count 1
	exits 1
	messages_are_ours
	try "$WPSNAP" save "$TARGET" -o /proc/nothing
	exits 1
	echo file >file
	try "$WPSNAP" watch "$TARGET" -o file --count 1
	exits 1
	[ "$(cat file)" = file ]
	small_tmpfs 1m
	mount -o remount,ro small
	try "$WPSNAP" save "$TARGET" -o small/s.wps
	exits 1
	says 'choose a place that this user can write to'
	try "$WPSNAP" watch "$TARGET" -o small/dir
	exits 1
}

@test "a full disk: code 1, nothing left, and the same works elsewhere" {
	need_tracking
	small_tmpfs 256k
	target_start 256 64
	tell fill 1
	try "$WPSNAP" save "$TARGET" -o small/s.wps
	exits 1
	says 'No space left on device; free space'
	messages_are_ours
	nothing_left small
	try "$WPSNAP" watch "$TARGET" -o small/dir --every 0
	exits 1
	nothing_left small/dir || [ "$(ls -A small/dir)" = .lock ]
	"$WPSNAP" save "$TARGET" -o s.wps
	try "$WPSNAP" merge s.wps -o small/m.wps
	exits 1
	says 'No space left'
	try "$WPSNAP" restore s.wps -o small/raw --range "$(range $ANON 0 256)"
	exits 1
	try "$WPSNAP" restore s.wps -o small/folder
	exits 1
	rm -rf small/dir
	nothing_left small
}

@test "/dev/full as standard output: code 1" {
	need_tracking
	target_start 64 16
	tell fill 1
	"$WPSNAP" save "$TARGET" -o s.wps
	for args in "save $TARGET -o -" "restore s.wps -o - --range $(range $ANON 0 64)" 'merge s.wps -o -' 'info s.wps' \
		'verify s.wps' 'probe'; do
		status=0
		timeout "$PATIENCE" "$WPSNAP" $args >/dev/full 2>err || status=$?
		[ "$status" -eq 1 ] || { echo "$args: $status"; false; }
		says 'No space left'
		messages_are_ours
	done
	try "$WPSNAP" save "$TARGET" -o /dev/full
	exits 1
}

@test "closed standard output: code 1, and no descriptor is taken for it" {
	need_tracking
	target_start 64 16
	tell fill 1
	"$WPSNAP" save "$TARGET" -o s.wps
	for args in "save $TARGET -o -" "restore s.wps -o - --range $(range $ANON 0 64)" 'merge s.wps -o -' 'info s.wps' \
		'verify s.wps' 'probe'; do
		status=0
		timeout "$PATIENCE" "$WPSNAP" $args >&- 2>err || status=$?
		[ "$status" -eq 1 ] || { echo "$args: $status"; false; }
		says 'Bad file descriptor'
	done
	timeout "$PATIENCE" "$WPSNAP" save "$TARGET" -q -o t.wps <&- >&- 2>&-
	"$WPSNAP" verify t.wps
}

@test "a reader that goes away: code 1, no death by SIGPIPE" {
	need_tracking
	target_start 4096 16
	tell fill 1
	"$WPSNAP" save "$TARGET" -o s.wps
	for args in "save $TARGET -o -" "restore s.wps -o - --range $(range $ANON 0 4096)" 'merge s.wps -o -'; do
		{ status=0; "$WPSNAP" $args 2>err || status=$?; echo $status >code; } | head -c 10 >/dev/null
		[ "$(cat code)" -eq 1 ]
		says 'Broken pipe'
		messages_are_ours
	done
}

@test "chains that are none: missing 1, junk 3" {
	echo junk >junk
	mkdir empty
	for c in info verify 'merge -o m' 'restore -o r'; do
		try "$WPSNAP" $c missing.wps
		exits 1
		says 'No such file or directory'
		messages_are_ours
		try "$WPSNAP" $c junk
		exits 3
		says 'not a snapshot file'
		try "$WPSNAP" $c empty
		[ "$status" -ne 0 ]
		messages_are_ours
	done
	[ ! -e m ]
	[ ! -e r ]
	try "$WPSNAP" diff junk missing.wps
	exits 2
}

@test "a damaged and a cut file: code 3, and no output" {
	need_tracking
	target_start 64 16
	tell fill 1
	"$WPSNAP" save "$TARGET" -o s.wps
	size=$(stat -c %s s.wps)
	cp s.wps bad.wps
	# well inside the page data, which does not compress
	printf 'XXXX' | dd of=bad.wps bs=1 seek=$((size / 2)) conv=notrunc status=none
	try "$WPSNAP" verify bad.wps s.wps
	exits 3
	says 'bad.wps'
	grep -qE '^s.wps: ok, 1 links' out
	lacks 'bad.wps: ok' out
	messages_are_ours
	try "$WPSNAP" merge bad.wps -o m.wps
	exits 3
	[ ! -e m.wps ]
	try "$WPSNAP" restore bad.wps -o folder
	exits 3
	[ ! -e folder ]
	try "$WPSNAP" verify --json bad.wps s.wps
	exits 3
	json_is_valid
	says '"chain":"bad.wps","ok":false' out
	says '"chain":"s.wps","ok":true' out
	head -c $((size - 1)) s.wps >cut.wps
	try "$WPSNAP" verify cut.wps
	exits 3
	try "$WPSNAP" verify -q s.wps
	exits 0
	[ ! -s out ]
}

@test "merge and restore end by the signal that interrupts them, and say so" {
	need_tracking
	# more than merge holds in memory, so that it can't have read everything before its first byte is taken from the pipe
	target_start 24576 16
	tell fill 1
	"$WPSNAP" save "$TARGET" -o s.wps
	for args in 'merge s.wps -o -' "restore s.wps -o - --range $(range $ANON 0 24576)"; do
		mkfifo pipe
		"$WPSNAP" $args >pipe 2>err 9<&- 8>&- &
		pid=$!
		PIDS+=("$pid")
		exec 5<pipe
		rm pipe
		# it has begun to write, and cannot end before the pipe is read
		dd bs=1 count=1 <&5 of=/dev/null status=none
		kill -TERM "$pid"
		cat <&5 >/dev/null
		status=0
		wait "$pid" || status=$?
		exec 5<&-
		: >out
		exits 143
		says "interrupted"
	done
}
