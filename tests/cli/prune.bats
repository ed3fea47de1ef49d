#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap prune, and --keep of watch and run: what stays is what the oracle read when the link was taken, the rest is gone.

load common

setup()
{
	common_setup
	need_tracking
}
teardown() { common_teardown; }

# keep N: the oracle's copy of all the memory of target_mem at link N
keep()
{
	dump "$(range $ANON 0 64)" "anon.$1"
	dump "$(range $SHARED 0 16)" "shared.$1"
}

# kept CHAIN N: the chain holds what was kept
kept()
{
	"$WPSNAP" restore -q "$1" -o - --range "$(range $ANON 0 64)" | cmp - "anon.$2"
	"$WPSNAP" restore -q "$1" -o - --range "$(range $SHARED 0 16)" | cmp - "shared.$2"
}

change()
{
	tell write $(($1 * 5 % 50)) $((1 + $1 % 4)) $(($1 + 100))
	tell shared $(($1 % 15)) 1 $(($1 + 50))
	tell zap $((($1 * 7 + 3) % 60)) 2
}

# make_chain N: links 0 to N in `dir`, each kept
make_chain()
{
	local i

	target_start 64 16
	tell fill 1
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	keep 0
	for ((i = 1; i <= $1; i++)); do
		change $i
		watch_link
		keep $i
	done
}

# points FIRST LAST [DIR]: just these links are there, and all of them are what they were
points()
{
	local i dir=${3:-dir}

	for ((i = $1; i <= $2; i++)); do
		printf '%010d\n' $i
	done >want
	ls "$dir" | cut -d- -f1 | diff want -
	for ((i = $1; i <= $2; i++)); do
		kept "$dir@$i" $i
	done
	kept "$dir" "$2"
	"$WPSNAP" verify -q "$dir"
	[ "$(ls -A "$dir" | grep -c tmp)" -eq 0 ]
}

@test "the last links stay what they were; the next link continues them" {
	make_chain 6
	watch_end
	"$WPSNAP" info --json dir | grep -oE '"sequence":[0-9]+,"id":"[0-9a-f]+"' | tail -3 >ids
	try "$WPSNAP" prune dir --keep 3
	exits 0
	[ ! -s err ]
	grep -qE '^3 links kept, from 4 on, 4 removed, [0-9.]+ [KM]iB, written [0-9.]+ [KM]iB, total [0-9.]+ [mu]?s$' out
	points 4 6
	"$WPSNAP" info --json dir | grep -oE '"sequence":[0-9]+,"id":"[0-9a-f]+"' | diff ids -
	kept dir@-1 6
	kept dir@-3 4
	"$WPSNAP" info --json dir | grep -q '"sequence":4,.*"full":true'
	try "$WPSNAP" prune dir --keep 3
	exits 0
	[ "$(cat out)" = '3 links kept, from 4 on, nothing to remove' ]
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	[[ $LINE == "link 7 continued: "* ]]
	change 8
	watch_link
	keep 8
	kept dir 8
	kept dir@5 5
	watch_end
	[ "$status" -eq 0 ]
}

@test "a number that was pruned says so" {
	make_chain 4
	watch_end
	"$WPSNAP" prune -q dir --keep 2
	for c in info verify; do
		try "$WPSNAP" $c dir@1
		exits 1
		says 'the chain does not reach back to this link any more'
		says 'wpsnap info lists the links that are there'
		messages_are_ours
	done
	try "$WPSNAP" restore dir@-4 -o raw
	exits 1
	says 'was pruned or merged away'
	try "$WPSNAP" info dir@9
	exits 1
	says 'No such file'
}

@test "--dry-run and --json" {
	make_chain 4
	watch_end
	ls -Al --time-style=full-iso dir >before
	try "$WPSNAP" prune dir --keep 2 --dry-run
	exits 0
	[ "$(grep -cE '^remove +[0-2]  .* 000000000[0-2]-[0-9a-f]+\.wps$' out)" -eq 3 ]
	[ "$(grep -cE '^merge +3  ' out)" -eq 1 ]
	[ "$(grep -cE '^keep +4  ' out)" -eq 1 ]
	tail -1 out | grep -qE '^2 links kept, from 3 on, 3 would be removed, '
	ls -Al --time-style=full-iso dir | diff before -
	try "$WPSNAP" prune dir --keep 2 --dry-run --json
	exits 0
	json_is_valid
	[ "$(grep -c '"type":"pruned".*"action":"remove"}$' out)" -eq 3 ]
	says '"type":"prune","dry_run":true,"sequence":3,"kept":2,"removed":3,"needed":0,"merged":4,' out
	ls -Al --time-style=full-iso dir | diff before -
	points 0 4
	try "$WPSNAP" prune dir --keep 2 --json
	exits 0
	json_is_valid
	says '"type":"prune","dry_run":false,"sequence":3,"kept":2,"removed":3,' out
	points 3 4
}

@test "usage: what can't be pruned, with what to do" {
	make_chain 2
	watch_end
	cat dir/*.wps >all.wps
	cp all.wps copy
	try "$WPSNAP" prune all.wps --keep 1
	exits 1
	says 'all.wps is one file'
	says 'wpsnap merge'
	cmp all.wps copy
	try "$WPSNAP" prune "$(echo dir/0000000002-*)" --keep 1
	exits 1
	says 'is one file'
	for bad in '- --keep 1' 'dir' 'dir --keep 0' 'dir --keep x' 'dir --keep -1'; do
		try "$WPSNAP" prune $bad
		exits 2
		messages_are_ours
	done
	try "$WPSNAP" prune missing --keep 1
	exits 1
	try "$WPSNAP" save "$TARGET" -o new.wps --keep 1
	exits 2
	points 0 2
}

@test "a chain that a watch writes to is refused" {
	make_chain 4
	try "$WPSNAP" prune dir --keep 1
	exits 1
	says 'another writer has the chain open'
	says '--keep N'
	points 0 4
	try "$WPSNAP" prune dir --keep 1 --dry-run
	exits 0
	change 5
	watch_link
	keep 5
	watch_end
	"$WPSNAP" prune -q dir --keep 1
	points 5 5
}

@test "a link that a branch builds on stays, and another chain" {
	make_chain 5
	watch_end
	change 9
	keep 9
	"$WPSNAP" save "$TARGET" -o dir/mine.wps --parent dir@1 -q
	kept dir/mine.wps 9
	try "$WPSNAP" prune dir --keep 2
	exits 0
	says 'link 0 stays: another link builds on it'
	says 'link 1 stays: another link builds on it'
	[ "$(ls dir/0*.wps | wc -l)" -eq 4 ]
	kept dir/mine.wps 9
	kept dir 5
	kept dir@4 4
	kept dir@1 1
}

@test "damage: nothing is removed" {
	make_chain 4
	watch_end
	file=$(echo dir/0000000001-*)
	printf 'XXXX' | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") / 2)) conv=notrunc status=none
	try "$WPSNAP" prune dir --keep 2
	exits 3
	messages_are_ours
	[ "$(ls dir/*.wps | wc -l)" -eq 5 ]
	kept dir@0 0
	[ "$(ls -A dir | grep -c tmp)" -eq 0 ]
}

@test "a full disk: nothing is removed, nothing is left" {
	need_root
	mkdir small
	mount -t tmpfs -o size=4m none small 2>/dev/null || skip "needs to mount a tmpfs"
	MOUNTED=$T/small
	make_chain 4
	watch_end
	cp -r dir small/dir
	dd if=/dev/zero of=small/full bs=4k status=none 2>/dev/null || :
	try "$WPSNAP" prune small/dir --keep 2
	exits 1
	says 'No space left'
	says 'nothing was removed'
	messages_are_ours
	points 0 4 small/dir
	rm small/full
	try "$WPSNAP" prune small/dir --keep 2
	exits 0
	points 3 4 small/dir
}

@test "killed in the midst of it, the last links stay, and the next one does the rest" {
	make_chain 5
	watch_end
	cp -r dir all
	for ((n = 0; n < 20; n++)); do
		rm -rf dir
		cp -r all dir
		# Wherever that comes; at every system call it comes in tests/unit/prune_test.
		"$WPSNAP" prune -q dir --keep 2 &
		sleep "0.00$((n % 10))"
		kill -KILL $! 2>/dev/null || :
		wait $! || :
		kept dir@4 4
		kept dir@5 5
		"$WPSNAP" prune -q dir --keep 2
		points 4 5
	done
}

@test "watch --keep 3 --count 12: never fewer than the last 3, never more than 11" {
	target_start 64 16
	tell fill 1
	watch_start watch "$TARGET" -o dir --every 0 --keep 3 --count 12
	watch_ready
	keep 0
	pruned=0
	for ((i = 1; i < 12; i++)); do
		change $i
		keep $i
		kill -USR1 "$WATCH"
		watch_line
		if [[ $LINE == prune:* ]]; then
			pruned=$((pruned + 1))
			[[ $LINE =~ ^'prune: 3 links kept, from '$((i - 3))' on, '[0-9]+' removed, ' ]]
			watch_line
		fi
		[[ $LINE == "link $i SIGUSR1: "* ]]
		for ((j = i < 3 ? 0 : i - 2; j <= i; j++)); do
			kept dir@$j $j
		done
		n=$(ls dir/*.wps | wc -l)
		[ "$n" -le 11 ]
		[ "$n" -ge $((i < 2 ? i + 1 : 3)) ]
	done
	watch_wait
	[ "$status" -eq 0 ]
	only_notes err
	pruned=$((pruned + $(grep -c '^prune: ' out || :)))
	[ "$pruned" -ge 1 ]
	first=$("$WPSNAP" info --json dir | grep -oE '"sequence":[0-9]+' | head -1 | cut -d: -f2)
	[ "$first" -gt 0 ]
	points "$first" 11
}

@test "watch --keep by time: the end is what the target holds" {
	target_start
	tell fill 1
	watch_start watch "$TARGET" -o dir --every 5ms --keep 1 --json
	for ((i = 0; i < 30; i++)); do
		tell write $i 4 $i
		watch_line
		echo "$LINE" >>lines.json
	done
	freeze
	thaw
	watch_end
	[ "$status" -eq 0 ]
	cat out >>lines.json
	json_is_valid lines.json
	grep -q '"type":"prune","dry_run":false,"sequence":[0-9]*,"kept":1,"removed":' lines.json
	[ "$(ls dir/*.wps | wc -l)" -le 9 ]
	"$WPSNAP" verify -q dir
	watch_start watch "$TARGET" -o dir --every 0 --count 1 --keep 1
	watch_ready
	watch_wait
	rm -rf all
	"$WPSNAP" restore -q dir -o all/
	same_as_folder all
}

@test "watch --keep on a full disk: a warning, links go on, and it is tried again" {
	need_root
	mkdir small
	mount -t tmpfs -o size=4m none small 2>/dev/null || skip "needs to mount a tmpfs"
	MOUNTED=$T/small
	target_start 256 16
	tell fill 1
	watch_start watch "$TARGET" -o small/dir --every 0 --keep 1
	watch_ready
	size=$(stat -c %s small/dir/0000000000-*)
	# room for small links, not for another full one
	dd if=/dev/zero of=small/full bs=4k status=none 2>/dev/null || :
	truncate -s -$((size / 2 / 4096 * 4096)) small/full
	for ((i = 1; i <= 9; i++)); do
		tell write 1 1 $i
		kill -USR1 "$WATCH"
		watch_line
		[[ $LINE == "link $i SIGUSR1: "* ]]
	done
	grep -qF 'watch: older links than the last 1 stay for now in small/dir: No space left on device; nothing was removed' watch.err
	[ "$(ls -A small/dir | grep -c tmp)" -eq 0 ]
	"$WPSNAP" verify -q small/dir
	rm small/full
	# after how many links more depends on when a line is read
	for ((i = 0; i < 70; i++)); do
		tell write 1 1 $i
		kill -USR1 "$WATCH"
		watch_line
		[[ $LINE != prune:* ]] || break
	done
	[[ $LINE == 'prune: 1 links kept, from '* ]]
	watch_end
	[ "$status" -eq 0 ]
	"$WPSNAP" verify -q small/dir
}

@test "watch --keep where a link does not fit: older ones go, also before it pays" {
	need_root
	mkdir small
	mount -t tmpfs -o size=8m none small 2>/dev/null || skip "needs to mount a tmpfs"
	MOUNTED=$T/small
	target_start 256 16
	tell fill 1
	watch_start watch "$TARGET" -o small/dir --every 0 --keep 1
	watch_ready
	# a full link of it would be small
	tell zap 0 256
	kill -USR1 "$WATCH"
	watch_line
	[[ $LINE == "link 1 SIGUSR1: "* ]]
	[ -e small/dir/0000000000-* ]
	dd if=/dev/zero of=small/full bs=4k status=none 2>/dev/null || :
	truncate -s -$((512 * 1024)) small/full
	tell fill 2
	kill -USR1 "$WATCH"
	watch_line
	[[ $LINE == 'prune: 1 links kept, from 1 on, 1 removed, '* ]]
	grep -qF 'No space left on device' watch.err
	kill -USR1 "$WATCH"
	watch_line
	[[ $LINE == "link 2 SIGUSR1: "* ]]
	watch_end
	"$WPSNAP" verify -q small/dir
}

@test "qemu watch --keep --with-disks: it is said that the disks' snapshots stay" {
	try "$WPSNAP" qemu watch nobody.sock -o dir --keep 2 --with-disks
	exits 1
	grep -qF 'the snapshots of disks stay when their links go: delete them with qemu-img snapshot -d' err
	try "$WPSNAP" qemu watch nobody.sock -o dir --keep 2
	exits 1
	! grep -qF 'snapshots of disks stay' err
}

@test "run --keep" {
	try "$WPSNAP" run -o dir --every 10ms --keep 2 -- sh -c 'i=0; while [ $i -lt 60 ]; do i=$((i + 1)); a="$a $i"; sleep 0.01; done'
	exits 0
	grep -qE '^prune: 2 links kept, from [0-9]+ on, ' err
	"$WPSNAP" verify dir
	[ "$(ls dir/*.wps | wc -l)" -le 10 ]
}
