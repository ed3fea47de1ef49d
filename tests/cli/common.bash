# SPDX-License-Identifier: MIT
# What the CLI's tests share. A test runs wpsnap as $WPSNAP, and beside it the helper programs of this folder.

: "${WPSNAP:=$BATS_TEST_DIRNAME/../../build/wpsnap}"
WPSNAP=$(realpath -m "$WPSNAP")
HELPERS=${WPT_HELPERS:-$(dirname "$WPSNAP")/tests/cli}
ROOT=$(realpath "$BATS_TEST_DIRNAME/../..")

# As in target_mem.c
ANON=100000000000
SHARED=110000000000
EXTRA=120000000000

# A hang is a failure, not a wait: the longest that anything is waited for, in seconds.
PATIENCE=${WPT_PATIENCE:-60}

common_setup()
{
	[ -x "$WPSNAP" ] || { echo "there is no $WPSNAP: make builds it"; return 1; }
	T=$BATS_TEST_TMPDIR
	cd "$T" || return 1
	# The kernel writes to a thread's rseq area whenever it moves the thread: memory that changes while the target is at rest.
	export GLIBC_TUNABLES=glibc.pthread.rseq=0
	PIDS=()
	WATCH=
	MOUNTED=
}

common_teardown()
{
	local pid

	for pid in "${PIDS[@]}"; do
		kill -KILL "$pid" 2>/dev/null || :
		kill -CONT "$pid" 2>/dev/null || :
		wait "$pid" 2>/dev/null || :
	done
	if [ -n "$MOUNTED" ]; then
		umount "$MOUNTED"
	fi
}

need_tracking()
{
	"$WPSNAP" probe >/dev/null 2>&1 ||
		skip "needs userfaultfd, WP_ASYNC and PAGEMAP_SCAN (Linux 6.7) for this user; wpsnap probe says what is missing"
}

need_root()
{
	[ "$(id -u)" -eq 0 ] || skip "needs root"
}

# Runs a command with standard output in `out`, standard error in `err` and its exit code in `status`.
try()
{
	status=0
	# timeout's own stderr apart: it warns when the machine is short of timers
	timeout "$PATIENCE" sh -c 'exec "$@" 2>err' - "$@" >out 2>timeout.err || status=$?
}

# The exit code of the last try; shows what it said if that is another.
exits()
{
	[ "$status" -eq "$1" ] && return
	echo "exit code $status, not $1; stdout:"
	cat out
	echo "stderr:"
	cat err
	return 1
}

# Standard error, or another file, has this text.
says()
{
	grep -qF -- "$1" "${2:-err}" && return
	echo "'$1' is not in ${2:-err}:"
	cat "${2:-err}"
	return 1
}

# lacks PATTERN FILE. A function, because bats does not see a plain "! grep" fail.
lacks()
{
	! grep -E -- "$1" "$2"
}

# Every message is "wpsnap: what: why".
messages_are_ours()
{
	[ ! -s err ] || ! grep -vE '^wpsnap: .' err
}

# Nothing but that files are compared, which depends on whether this user may look at every process.
only_notes()
{
	! grep -vE '^wpsnap: compared by content: ' "$1"
}

json_is_valid()
{
	"$HELPERS/target_json" <"${1:-out}"
}

# ---- targets ----

# Starts target_mem with these arguments; TARGET is its pid. It answers on one fifo what it is told on the other.
target_start()
{
	mkfifo to from
	"$HELPERS/target_mem" "$@" <to >from 2>target.err &
	TARGET=$!
	PIDS+=("$TARGET")
	exec 8>to 9<from
	rm to from
	target_answers
	at_rest
}

target_answers()
{
	local answer=

	read -r -t "$PATIENCE" -u 9 answer || { echo "the target does not answer"; return 1; }
	[ "$answer" = ok ]
}

tell()
{
	echo "$*" >&8
	target_answers
	at_rest
}

# The answer is seen before the target is done with giving it, and what its stdio notes of that is memory, too.
at_rest()
{
	[ -z "${TARGET:-}" ] || until_state "$TARGET" S
}

# Ends the target and waits until it is gone.
target_end()
{
	echo "$*" >&8
	wait "$TARGET" 2>/dev/null || :
}

# Until the process has this state, as in /proc/PID/stat.
until_state()
{
	local state line i

	for ((i = 0; i < PATIENCE * 100; i++)); do
		read -r line <"/proc/$1/stat" || return 1
		line=${line##*) }
		state=${line%% *}
		[ "$state" = "$2" ] && return
		sleep 0.01
	done
	echo "process $1 is in state $state, not $2"
	return 1
}

freeze()
{
	kill -STOP "$TARGET"
	until_state "$TARGET" T
}

thaw()
{
	kill -CONT "$TARGET"
}

# dump RANGE FILE: what the target holds there now, by the oracle
dump()
{
	freeze
	"$HELPERS/target_dump" "$TARGET" "$1" "$2"
	thaw
}

# range BASE FIRST COUNT: START-END of pages
range()
{
	printf '%x-%x' $((0x$1 + $2 * 4096)) $((0x$1 + ($2 + $3) * 4096))
}

# All writable memory of the target against a restored folder, each range byte by byte, and nothing left out.
same_as_folder()
{
	local file span

	freeze
	for file in "$1"/*.raw; do
		span=$(basename "$file" .raw | grep -oE '^[0-9a-f]+-[0-9a-f]+')
		"$HELPERS/target_dump" "$TARGET" "$span" dump.raw
		cmp "$file" dump.raw || { thaw; return 1; }
	done
	"$HELPERS/target_dump" "$TARGET" writable >writable
	thaw
	all_covered "$1" <writable
}

# The ranges of a restored folder in order of address: START END, decimal, padded
spans_of()
{
	local file span

	for file in "$1"/*.raw; do
		span=$(basename "$file" .raw | grep -oE '^[0-9a-f]+-[0-9a-f]+')
		printf '%020d %020d\n' $((0x${span%-*})) $((0x${span#*-}))
	done | sort
}

# Standard input: ranges; each must lie in one of the folder's files or in several that touch.
all_covered()
{
	local span start end from to

	while read -r span; do
		start=$((0x${span%-*})) end=$((0x${span#*-}))
		while read -r from to; do
			if ((10#$from <= start && start < 10#$to)); then
				start=$((10#$to))
			fi
		done < <(spans_of "$1")
		((start >= end)) || { echo "$span is not in $1"; return 1; }
	done
}

# ---- watch ----

# Starts wpsnap watch with these arguments; its lines are read by watch_line.
watch_start()
{
	mkfifo lines
	"$WPSNAP" "$@" >lines 2>watch.err 8>&- 9<&- &
	WATCH=$!
	PIDS+=("$WATCH")
	exec 7<lines
	rm lines
}

# The next line into LINE
watch_line()
{
	LINE=
	read -r -t "$PATIENCE" -u 7 LINE || { echo "no line from the watch; it said:"; cat watch.err; return 1; }
}

watch_ready()
{
	watch_line
	[ "$LINE" = ready ] || { echo "not ready: $LINE"; return 1; }
	watch_line
}

# A link by signal
watch_link()
{
	kill -USR1 "$WATCH"
	watch_line
	case $LINE in
	link*SIGUSR1:*) ;;
	*) echo "not a link by signal: $LINE"; return 1 ;;
	esac
}

# Waits for the end of $WATCH, but not for ever: its exit code in `status`
ended()
{
	local i

	for ((i = 0; i < PATIENCE * 100; i++)); do
		# bash may have waited for it already, and knows its exit code
		grep -qE '\) [^ZX] ' "/proc/$WATCH/stat" 2>/dev/null || break
		sleep 0.01
	done
	((i < PATIENCE * 100)) || { echo "process $WATCH does not end"; return 1; }
	status=0
	wait "$WATCH" || status=$?
}

watch_wait()
{
	ended
	cp watch.err err
	cat <&7 >out
}

watch_end()
{
	kill -TERM "$WATCH"
	watch_wait
}
