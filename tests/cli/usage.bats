#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The command line: what is accepted, what is refused and how.

load common

setup() { common_setup; }
teardown() { common_teardown; }

COMMANDS='probe save watch run info verify diff merge prune restore'

# refused TEXT ARGS...: a usage error that has the text, and nothing on standard output
refused()
{
	local text=$1

	shift
	try "$WPSNAP" "$@"
	exits 2
	says "$text"
	messages_are_ours
	[ ! -s out ]
	[ "$(wc -l <err)" -eq 1 ]
}

@test "without a command: the usage on stderr, code 2" {
	try "$WPSNAP"
	exits 2
	says usage
	[ ! -s out ]
}

@test "--help and -h print every command, and none that is not there yet" {
	local c

	for h in --help -h; do
		try "$WPSNAP" $h
		exits 0
		[ ! -s err ]
		for c in $COMMANDS; do
			grep -qE "^  $c " out
		done
		lacks 'heatmap|://' out
	done
}

@test "--help of each command exits 0 and names it" {
	for c in $COMMANDS; do
		for h in --help -h; do
			try "$WPSNAP" "$c" $h
			exits 0
			says "usage: wpsnap $c" out
			[ ! -s err ]
			lacks 'URL' out
		done
	done
}

@test "--version everywhere" {
	for c in '' $COMMANDS; do
		for v in --version -V; do
			try "$WPSNAP" $c $v
			exits 0
			grep -qxE 'wpsnap [0-9]+\.[0-9]+\.[0-9]+, libwptrack [0-9]+\.[0-9]+\.[0-9]+' out
		done
	done
}

@test "commands of qemu: help, usage, and what is no monitor" {
	local c

	try "$WPSNAP" --help
	for c in save watch restore; do
		grep -qE "^  qemu $c " out
	done
	for c in save watch restore; do
		try "$WPSNAP" qemu $c --help
		exits 0
		says "usage: wpsnap qemu $c " out
	done
	refused 'qemu takes save, watch or restore' qemu
	refused 'qemu takes save, watch or restore' qemu frob
	refused 'an argument is missing' qemu save -o f
	refused '-o is missing' qemu watch socket
	refused "no option '--mode'" qemu save socket -o f --mode fuzzy
	refused '--pid is of one machine' qemu watch a b -o d --pid 1
	refused '--device-limit takes a size' qemu save socket -o f --device-limit 2G
	try "$WPSNAP" qemu save "$T/none" -o f
	exits 1
	says "no monitor at $T/none"
	says 'server=on,wait=off'
	try "$WPSNAP" qemu watch err -o d
	exits 1
	says 'no monitor at err'
	[ ! -e f ] && [ ! -e d ]
	messages_are_ours
	try "$WPSNAP" qemu restore "$ROOT/tests/golden/v1-base.wps" -- false
	exits 1
	says 'does not say what machine it is of'
}

@test "--help to a full disk fails" {
	status=0
	"$WPSNAP" --help >/dev/full 2>err || status=$?
	[ "$status" -eq 1 ]
	says 'No space left'
}

@test "unknown commands, also those of later versions, are refused" {
	for c in copy heatmap snap '' -x; do
		refused 'no command' "$c"
	done
}

@test "unknown options, abbreviations and options of other commands are refused" {
	refused "no option '--frob'" save 1 -o f --frob
	refused "no option '--compres'" save 1 -o f --compres
	refused "no option '--lev'" save 1 -o f --lev 1
	refused "no option '-x'" save 1 -o f -x
	refused "no option '--keep'" save 1 -o f --keep 3
	refused "no option '--every'" save 1 -o f --every 1s
	refused "no option '--json'" merge c -o f --json
	refused "--new takes no value" watch 1 -o f --new=1
}

@test "missing values and arguments are refused" {
	refused '-o is missing' save 1
	refused '-o is missing' watch 1
	refused '-o is missing' run -- true
	refused '-o is missing' merge c
	refused '-o is missing' restore c
	refused '--keep N is missing' prune c
	refused 'needs a value' save 1 -o
	refused 'needs a value' save 1 --output
	refused 'needs a value' save 1 -o f --level
	refused 'an argument is missing' save -o f
	refused 'an argument is missing' info
	refused 'an argument is missing' verify
	refused 'an argument is missing' diff a
	refused 'a command to run is missing' run -o d
	refused 'a command to run is missing' run -o d --
	refused 'one argument too many' save 1 2 -o f
	refused 'one argument too many' diff a b c
	refused 'one argument too many' probe x
	refused 'is empty' save 1 -o ''
}

@test "pids that are none" {
	for pid in 0 -1 x 1x 99999999999999999999 '' ' 1' 1.5 0x10; do
		case $pid in
		-*) refused 'not the pid' save -o f -- "$pid" ;;
		*) refused 'not the pid' save "$pid" -o f ;;
		esac
	done
}

@test "levels, threads, counts that are none" {
	for n in 0 20 -101 x 1.5 '' 99999999999999999999 1000 AUTO; do
		refused -- save 1 -o f "--level=$n"
	done
	for n in 0 65 -1 x ''; do
		refused -- save 1 -o f "--threads=$n"
		refused -- restore f -o g "--threads=$n"
	done
	for n in 0 -1 x 1.5 '' 99999999999999999999; do
		refused -- watch 1 -o f "--count=$n"
	done
}

@test "sizes that are none" {
	for n in '' x 4X -1M 4MB 4.M .5G 1e3 ' 4M' 4M' ' 99999999999999999999 17179869184T 1.0000000001G 0.3 5M5; do
		refused '--staging takes a size' save 1 -o f "--staging=$n"
	done
	for n in 0 1 1M 3.9M 4194303; do
		refused 'at least 4M' save 1 -o f "--staging=$n"
	done
}

@test "times that are none" {
	for n in '' x 5x -5s 1.s .5s 5S5 99999999999999999999 9999999999h 1.5ns ' 5s' 1d; do
		refused '--every takes a time' watch 1 -o f "--every=$n"
	done
}

# 4194304 has no process: pids end below it
@test "sizes and times as people write them get as far as the missing process" {
	for n in 4M 4m 4194304 4194304B 4096K 4MiB 4096KiB 1G 1.5G 0.5g 1T 4.5MiB; do
		try "$WPSNAP" save 4194304 -o f "--staging=$n"
		exits 5
	done
	for n in 0 5 5s 250ms 1.5s 2m 1h 100us 1000000ns 0.25; do
		try "$WPSNAP" watch 4194304 -o f "--every=$n"
		exits 5
	done
	for n in -100 -1 1 19; do
		try "$WPSNAP" save 4194304 -of --level "$n"
		exits 5
	done
}

@test "each unit is what it says: one step beyond the bound is refused" {
	for n in 4194304 4096K 4M 0.00390625G 0.000003815T; do
		try "$WPSNAP" save 4194304 -o f "--staging=$n"
		exits 5
	done
	for n in 4194303 4095K 3.999M 0.003906249G 0.000003814T; do
		refused 'at least 4M' save 1 -o f "--staging=$n"
	done
	# the most that 63 bits of nanoseconds hold
	for n in 9223372036854775807ns 9223372036854775us 9223372036854ms 9223372036s 9223372036 153722867m 2562047h; do
		try "$WPSNAP" watch 4194304 -o f "--every=$n"
		exits 5
	done
	for n in 9223372036854775808ns 9223372036854776us 9223372036855ms 9223372037s 9223372037 153722868m 2562048h; do
		refused '--every takes a time' watch 1 -o f "--every=$n"
	done
}

@test "modes and backends that are none are refused" {
	refused '--backend takes auto, async or sync' save 1 -o f --backend fast
	refused '--mode cow needs --backend sync' save 1 -o f --mode cow --backend async
	refused 'takes pause, cow or fuzzy' save 1 -o f --mode quick
	refused '--registers needs --mode pause' save 1 -o f --mode fuzzy --registers
	refused 'exclude each other' save 1 -o f --verify-content --assume-sole-writer
}

@test "URLs say that they are not there yet" {
	refused 'URLs are not supported yet' save 1 -o s3://bucket/x.wps
	refused 'URLs are not supported yet' watch 1 -o https://host/dir
	refused 'URLs are not supported yet' run -o s3://bucket/x -- true
	refused 'URLs are not supported yet' save 1 -o f --parent http://host/p.wps
	refused 'URLs are not supported yet' merge c -o s3://bucket/x
	for c in info verify; do
		refused 'URLs are not supported yet' $c s3://bucket/x
	done
	refused 'URLs are not supported yet' diff x s3://bucket/x
	refused 'URLs are not supported yet' restore s3://bucket/x -o f
}

@test "ranges that are none" {
	refused 'empty, backwards' save 1 -o f --range 2000-1000
	refused 'empty, backwards' save 1 -o f --range 1000-1000
	refused 'empty, backwards' save 1 -o f --range 0-10000000000000000
	refused 'page boundaries; 1000-3000' save 1 -o f --range 1001-2001
	refused '--range is empty' save 1 -o f --range ''
	refused 'twice' restore c -o f --range 1-2 --range 3-4
	refused 'START-END only' run -o d --range '[heap]' -- true
}

@test "snapshots do not go to a terminal, watch does not go to standard output" {
	refused 'needs a folder' watch 1 -o -
	refused '--parent needs a file' save 1 -o - --parent p
	command -v script >/dev/null || skip "needs script(1)"
	script -qec "'$WPSNAP' save 1 -o -" /dev/null </dev/null >out || :
	says 'not written to a terminal' out
}

@test "the man page, --help and the completions have the same options" {
	local c opt

	for c in $COMMANDS; do
		"$WPSNAP" "$c" --help | grep -oE -- '--[a-z-]+' | sort -u >help.opts
		[ -s help.opts ]
		while read -r opt; do
			grep -qE -- "Fl (h |q |V |o |.*, Fl )?${opt/#--/-}( |\$)" "$ROOT/man/wpsnap.1" || { echo "man: $opt"; false; }
			grep -qE -- "$opt(['\[{,} ]|\$)" "$ROOT/tools/snapshot/completion/_wpsnap" || { echo "zsh: $opt"; false; }
			case $opt in
			--help | --version) continue ;;
			esac
		done <help.opts
		bash -c 'source "$1"; COMP_WORDS=(wpsnap "$2" --) COMP_CWORD=2; _wpsnap; printf "%s\n" "${COMPREPLY[@]}" | sort -u' \
			- "$ROOT/tools/snapshot/completion/wpsnap.bash" "$c" >bash.opts
		"$WPSNAP" "$c" --help | grep -oE -- '^ +(-[a-zA-Z], )?--[a-z-]+' | grep -oE -- '--.*' | sort -u >table.opts
		diff table.opts bash.opts
	done
}

@test "bash completes commands, modes and pids" {
	complete_is()
	{
		bash -c 'source "$1"; shift; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _wpsnap; echo "${COMPREPLY[@]}"' \
			- "$ROOT/tools/snapshot/completion/wpsnap.bash" "${@:2}" >out
		[ "$(cat out)" = "$1" ] || { cat out; return 1; }
	}
	complete_is 'restore' wpsnap re
	complete_is 'pause cow fuzzy' wpsnap save --mode ''
	# Others may begin with it.
	complete_is "$$" wpsnap save $$ || grep -qwF "$$" out
}

@test "the man page is clean and the completions parse" {
	bash -n "$ROOT/tools/snapshot/completion/wpsnap.bash"
	if command -v zsh >/dev/null; then
		zsh -n "$ROOT/tools/snapshot/completion/_wpsnap"
	fi
	command -v mandoc >/dev/null || skip "needs mandoc"
	mandoc -Tlint -Wwarning "$ROOT/man/wpsnap.1" >lint 2>/dev/null || :
	lacks . lint
}
