#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap run: the command's streams and exit code are its own; the snapshots are of what it executes.

load common

setup()
{
	common_setup
	need_tracking
}
teardown() { common_teardown; }

# Starts wpsnap run with these arguments; the command's streams are the fifos of target_start, the lines come by watch_line.
run_start()
{
	mkfifo to from lines
	# a background process of a script starts with SIGINT ignored, and so would the command
	env --default-signal=INT "$WPSNAP" run "$@" <to >from 2>lines &
	WATCH=$!
	PIDS+=("$WATCH")
	exec 8>to 9<from 7<lines
	rm to from lines
	: >watch.err
}

# the pid of the command that $WATCH runs
run_child()
{
	TARGET=$(cat "/proc/$WATCH/task/$WATCH/children")
	TARGET=${TARGET%% *}
	PIDS+=("$TARGET")
}

# skips messages up to the line that begins so
line_with()
{
	while watch_line; do
		case $LINE in
		"$1"*) return ;;
		esac
	done
	return 1
}

@test "the exit code is the command's" {
	for code in 0 1 7 255; do
		try "$WPSNAP" run -o "d$code" -- sh -c "exit $code"
		exits "$code"
	done
	try "$WPSNAP" run -q -o killed -- sh -c 'kill -KILL $$'
	exits 137
	try "$WPSNAP" run -q -o termed -- sh -c 'kill -TERM $$'
	exits 143
}

@test "a command that is not there: 127; one that can't be executed: 126" {
	# a folder on the path that may not be searched would make it 126
	PATH=/usr/bin:/bin try "$WPSNAP" run -o d -- no-such-command-here
	exits 127
	says "cannot execute 'no-such-command-here': No such file or directory"
	messages_are_ours
	echo text >text
	try "$WPSNAP" run -o d -- ./text
	exits 126
	says 'Permission denied'
	try "$WPSNAP" run -o d -- /
	exits 126
	[ ! -e d ]
}

@test "links are of the command's memory" {
	run_start -o dir --every 0 -- "$HELPERS/target_mem"
	target_answers
	line_with ready
	line_with 'link 0 base:'
	run_child
	tell fill 1
	kill -USR1 "$WATCH"
	line_with 'link 1 SIGUSR1:'
	"$WPSNAP" restore dir -o all
	same_as_folder all
	tell write 3 9 1
	kill -USR1 "$WATCH"
	line_with 'link 2 SIGUSR1:'
	dump "$(range $ANON 0 256)" dumped
	"$WPSNAP" restore dir -o raw --range "$(range $ANON 0 256)"
	cmp raw dumped
	echo 'exit 9' >&8
	ended
	[ "$status" -eq 9 ]
	"$WPSNAP" verify dir
}

@test "without -- the command begins at the first argument that is no option" {
	run_start -o dir --every 0 "$HELPERS/target_mem" 16 16
	target_answers
	line_with 'link 0 base:'
	echo 'exit 4' >&8
	ended
	[ "$status" -eq 4 ]
}

@test "SIGTERM and SIGINT are passed on, and the command's answer is the exit code" {
	for sig in TERM INT; do
		run_start -o "dir$sig" --every 0 -- bash -c "trap 'exit 33' $sig; echo ok; while :; do read -t 100 line; done"
		target_answers
		line_with ready
		kill -$sig "$WATCH"
		ended
		[ "$status" -eq 33 ]
		exec 7<&- 8>&- 9<&-
	done
}

@test "the command starts with the signals of its parent, none blocked or ignored by us" {
	try "$WPSNAP" run -q -o dir -- grep -E '^Sig(Blk|Ign)' /proc/self/status
	exits 0
	cp out inside
	grep -E '^Sig(Blk|Ign)' /proc/self/status | diff inside -
}

@test "the command inherits no descriptor of ours" {
	try "$WPSNAP" run -q -o dir -- ls /proc/self/fd
	exits 0
	cp out inside
	ls /proc/self/fd >outside
	diff inside outside
}

@test "-q says nothing; the command's own streams are untouched" {
	try "$WPSNAP" run -q -o dir --every 0 -- sh -c 'cat; echo to-err >&2; echo to-out' </dev/null
	exits 0
	[ "$(cat out)" = to-out ]
	says to-err
}

@test "a folder that has a chain is refused before the command starts, unless --new" {
	run_start -o dir --every 0 -- "$HELPERS/target_mem" 16 16
	line_with 'link 0 base:'
	echo 'exit 0' >&8
	ended
	try "$WPSNAP" run -o dir -- touch started
	exits 1
	says '--new starts a new chain'
	[ ! -e started ]
	try "$WPSNAP" run -o dir --new -- touch started
	exits 0
	[ -e started ]
}

@test "a command that executes another program is followed into it" {
	run_start -o dir --every 0 -- "$HELPERS/target_mem" 16 16
	target_answers
	line_with 'link 0 base:'
	tell exec "$HELPERS/target_mem"
	tell fill 5
	kill -USR1 "$WATCH"
	line_with 'link 1 exec:'
	file=${LINE##*, }
	run_child
	dump "$(range $ANON 0 256)" dumped
	"$WPSNAP" restore "dir/$file" -o raw --range "$(range $ANON 0 256)"
	cmp raw dumped
	kill -USR1 "$WATCH"
	line_with 'link 2 SIGUSR1:'
	echo 'exit 6' >&8
	ended
	[ "$status" -eq 6 ]
}

@test "--count reached: the command runs on" {
	run_start -o dir --every 0 --count 1 -- "$HELPERS/target_mem" 16 16
	target_answers
	line_with 'link 0 base:'
	tell fill 1
	tell fill 2
	echo 'exit 5' >&8
	ended
	[ "$status" -eq 5 ]
	[ "$(ls dir/*.wps | wc -l)" -eq 1 ]
}

@test "--json: objects on standard error" {
	run_start -o dir --every 0 --json -- "$HELPERS/target_mem" 16 16
	target_answers
	line_with '{"schema":1,"type":"ready"'
	echo "$LINE" >lines.json
	line_with '{"schema":1,"type":"link","trigger":"base"'
	echo "$LINE" >>lines.json
	echo 'exit 0' >&8
	ended
	line_with '{"schema":1,"type":"end"'
	echo "$LINE" >>lines.json
	json_is_valid lines.json
}
